//! Plans of sandboxes that start from a template, and a life of one.

use super::*;
use bulkhead_model::Failure;
use bulkhead_model::plan::FactoryPlan;
use bulkhead_model::snapshot::Provenance;
use bulkhead_sandbox::template::{Order, shape};

/// A plan whose files are there, and were long before the test: a fresh file's digest is not remembered.
pub fn templated_plan(bench: &Bench, name: &str) -> SandboxPlan {
    let mut plan = sandbox_plan(name);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    plan.vm.hypervisor = "/bin/sh".into();
    plan.vm.kernel = here.join("Cargo.toml");
    plan.vm.initrd = here.join("src/lib.rs");
    plan.factory = FactoryPlan {
        template: true,
        template_path: bench.dir.path().join("templates"),
        template_memory: bench.dir.path().join("memory"),
        ..FactoryPlan::default()
    };
    plan
}

/// The order for what `plan` starts from.
pub fn order(plan: &SandboxPlan) -> Order {
    Order {
        plan: shape(&plan.vm),
        accelerator: Accelerator::Tcg,
        factory: plan.factory.clone(),
    }
}

/// create, start, delete; what the sandbox says of its start. Its directories are gone then.
pub async fn life(bench: &Bench, plan: SandboxPlan) -> Result<Provenance, Failure> {
    let (handle, engine) = bench.sandbox_of(plan);
    let result = async {
        create(&handle, "a", true).await?;
        call(&handle, Command::Start { id: id("a") }).await?;
        let Reply::Snapshot { snapshot } = call(&handle, Command::Snapshot).await? else {
            panic!("no snapshot")
        };
        Ok(snapshot.provenance)
    }
    .await;
    if !engine.is_finished() {
        let _ = remove(&handle, "a").await;
    }
    let left = tokio::time::timeout(Duration::from_secs(60), engine)
        .await
        .expect("the engine ends")
        .unwrap();
    assert_eq!(left, Vec::<String>::new());
    assert!(!bench.paths("a").dir.exists() && !bench.paths("a").sockets.exists());
    result
}
