//! `template`: saved machines that sandboxes start from.

use super::{Outcome, print_json, print_text};
use crate::context::Context;
use bulkhead_config::{Config, Source};
use bulkhead_model::plan::FactoryPlan;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::host::{end_marked, leave_pool_cgroup};
use bulkhead_sandbox::template::{Condition, Kept, Order, TemplateKey, TemplateStore, shape};
use bulkhead_shim::{accelerator, host_facts, template_maker};
use clap::{Subcommand, ValueEnum};

/// Output forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Table,
    /// A list.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Make the template of the configuration now, if there is none
    Create,
    /// List the templates, their sizes and what is wrong with them
    List {
        /// Output form
        #[arg(long, short, value_enum, default_value = "table")]
        format: Format,
    },
    /// End the VMs that wait; `pool` of the configuration says how many are to, and the next start has them made again
    Drain {
        /// Keys, as `template list` prints them; all without
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Remove templates and the VMs that wait for them; sandboxes that started from them go on
    Destroy {
        /// Every one
        #[arg(long, conflicts_with = "keys", required_unless_present = "keys")]
        all: bool,
        /// Keys, as `template list` prints them
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
}

impl TemplateCommand {
    /// Runs the verb.
    ///
    /// # Errors
    /// A configuration that cannot be used, a template that cannot be made, an unknown key.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let config = Config::load(&Source::named(context.config.as_deref()))
            .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
        let (vm, factory) = bulkhead_config::machine(&config, &host_facts::read());
        match self {
            Self::Create => create(Order {
                plan: shape(&vm),
                accelerator: accelerator::probe().accelerator,
                factory,
            }),
            Self::List { format } => list(&factory, format),
            Self::Drain { keys } => drain(&factory, &keys),
            Self::Destroy { all, keys } => destroy(&factory, all, &keys),
        }
    }
}

/// The store of the configuration in force.
///
/// # Errors
/// A configuration that cannot be used.
pub(crate) fn store(context: &Context) -> Result<TemplateStore, Failure> {
    let config = Config::load(&Source::named(context.config.as_deref()))
        .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
    let (_, factory) = bulkhead_config::machine(&config, &host_facts::read());
    Ok(TemplateStore::of(&factory))
}

fn create(order: Order) -> Outcome {
    use bulkhead_sandbox::template::Outcome as Made;
    let (key, what) = match template_maker::carry_out(&order)? {
        Made::Made(key) => (key, "made"),
        Made::Present(key) => (key, "there already"),
        Made::BeingMade(key) => (key, "being made by another process"),
    };
    let store = TemplateStore::of(&order.factory);
    let size = store.list().into_iter().find(|kept| kept.key == key);
    let size = size.map_or_else(String::new, |kept| format!(", {}", mib(kept.used_bytes)));
    print_text(&format!("{key} {what}{size}\n"))
}

fn list(factory: &FactoryPlan, format: Format) -> Outcome {
    let all = TemplateStore::of(factory).list();
    match format {
        Format::Json => print_json(&all),
        Format::Table => print_text(&table(&all)),
    }
}

fn drain(factory: &FactoryPlan, keys: &[String]) -> Outcome {
    let store = TemplateStore::of(factory);
    let mut text = String::new();
    for key in chosen(&store, keys.is_empty(), keys)? {
        text.push_str(&format!("{key} {}\n", end_waiting(&store, &key)?));
    }
    leave_pool_cgroup();
    print_text(&text)
}

fn destroy(factory: &FactoryPlan, all: bool, keys: &[String]) -> Outcome {
    let store = TemplateStore::of(factory);
    let chosen = chosen(&store, all, keys)?;
    for key in &chosen {
        store.destroy(key);
        end_waiting(&store, key)?;
    }
    leave_pool_cgroup();
    print_text(&chosen.iter().map(|key| format!("{key}\n")).collect::<String>())
}

/// Ends the VMs that wait for a template; how many there were.
fn end_waiting(store: &TemplateStore, key: &TemplateKey) -> Result<usize, Failure> {
    store
        .pool(key)
        .drain(&|marker| end_marked(marker, None))
        .map_err(|error| {
            Failure::new(
                FailureKind::Internal,
                format!("ending the VMs that wait for template {key}: {error}"),
            )
        })
}

fn chosen(store: &TemplateStore, all: bool, keys: &[String]) -> Result<Vec<TemplateKey>, Failure> {
    let there: Vec<TemplateKey> = store.list().into_iter().map(|kept| kept.key).collect();
    if all {
        return Ok(there);
    }
    keys.iter()
        .map(|text| {
            TemplateKey::parse(text)
                .filter(|key| there.contains(key))
                .ok_or_else(|| {
                    Failure::new(
                        FailureKind::NotFound,
                        format!("template {text} does not exist: see `bulkhead template list`"),
                    )
                })
        })
        .collect()
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn table(all: &[Kept]) -> String {
    let mut text = format!(
        "{:<34}{:<14}{:<9}{:<12}{:<24}{}\n",
        "KEY", "SIZE", "WAITING", "MACHINE", "KERNEL", "STATUS"
    );
    for kept in all {
        let (machine, kernel) = kept.manifest.as_ref().map_or_else(Default::default, |manifest| {
            let machine = format!("{} × {} MiB", manifest.vcpus, manifest.memory_mib);
            (machine, manifest.kernel_release.clone())
        });
        let condition = match &kept.condition {
            Condition::Ready => "ready".to_owned(),
            Condition::BeingMade => "being made".to_owned(),
            Condition::Failed(why) => format!("failed: {why}"),
            Condition::Damaged(why) => format!("damaged: {why}"),
            Condition::Gone => "gone".to_owned(),
        };
        text.push_str(&format!(
            "{:<34}{:<14}{:<9}{machine:<12}{kernel:<24}{condition}\n",
            kept.key.as_str(),
            mib(kept.used_bytes),
            kept.waiting.len(),
        ));
    }
    text
}
