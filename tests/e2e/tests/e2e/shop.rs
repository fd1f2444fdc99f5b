//! What the tests of templates share: a lab that keeps templates of its own.

use bulkhead_e2e::{Bundle, Call, Lab, Outcome, VERB};
use serde_json::Value;
use std::path::PathBuf;

/// A lab with templates of its own.
pub(crate) struct Shop {
    pub(crate) lab: Lab,
    pub(crate) config: PathBuf,
    pub(crate) templates: PathBuf,
}

impl Shop {
    pub(crate) fn new(more: &str) -> Self {
        Self::of("", more)
    }

    /// The same with lines for the VM.
    pub(crate) fn of(hypervisor: &str, more: &str) -> Self {
        let lab = Lab::new();
        let templates = lab.dir().join("templates");
        let config = lab.dir().join("config.toml");
        let base = std::fs::read_to_string(Lab::config()).unwrap();
        let base = base.split("[factory]").next().unwrap();
        let factory =
            format!("[factory]\ntemplate_path = {templates:?}\ntemplate_memory = {templates:?}\n{more}");
        std::fs::write(&config, format!("{base}{hypervisor}\n{factory}")).unwrap();
        Self {
            lab,
            config,
            templates,
        }
    }

    pub(crate) fn call(&self, args: &[&str]) -> Outcome {
        self.prepare(args).run()
    }

    /// A call that is not made yet.
    pub(crate) fn prepare(&self, args: &[&str]) -> Call {
        let config = self.config.to_str().unwrap();
        self.lab.call_with(&["--config", config], args).within(VERB)
    }

    /// Runs a bundle in the background; its id.
    pub(crate) fn run(&self, bundle: &Bundle) -> String {
        let id = self.lab.id();
        let _ = self
            .call(&["run", "--detach", "--bundle", bundle.arg(), &id])
            .ok();
        id
    }

    /// Makes the template; its key.
    pub(crate) fn create(&self) -> String {
        let made = self.call(&["template", "create"]).ok().text();
        made.split(' ').next().unwrap().to_owned()
    }

    /// Whether there is a good template.
    pub(crate) fn is_ready(&self) -> bool {
        self.list().iter().any(|one| one["condition"] == "ready")
    }

    pub(crate) fn list(&self) -> Vec<Value> {
        let list = self.call(&["template", "list", "--format", "json"]).ok().json();
        list.as_array().unwrap().clone()
    }

    pub(crate) fn provenance(&self, id: &str) -> Value {
        self.call(&["inspect", id]).ok().json()["provenance"].clone()
    }
}
