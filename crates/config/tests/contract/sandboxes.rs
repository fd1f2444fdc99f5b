//! O-02, O-05, O-20 to O-23: a spec and a configuration become a sandbox.

use crate::support::*;
use bulkhead_config::{CONFIG_PATH_ANNOTATION, Config, PlanKind};
use bulkhead_model::NetworkPlan;
use bulkhead_model::plan::NetworkMonitor;
use serde_json::json;
use std::path::Path;

/// O-02: identity and what is recorded.
#[test]
fn o02_sandbox_config() {
    let mut spec = annotated(&[("a", "b")]);
    spec["hostname"] = json!("web");
    spec["domainname"] = json!("example");
    spec["linux"]["cgroupsPath"] = json!("/kube/pod1");
    let plan = sandbox("", &spec);
    assert_eq!(plan.id.as_str(), "c1");
    assert_eq!(
        (plan.hostname.as_deref(), plan.domainname.as_deref()),
        (Some("web"), Some("example"))
    );
    assert_eq!(plan.cgroups_path.as_deref(), Some("/kube/pod1"));
    assert_eq!(plan.annotations, map(&[("a", "b")]));
    assert_eq!(
        plan.recorded,
        map(&[("io.katacontainers.pkg.oci.bundle_path", "/bundle")])
    );
    let plain = sandbox("", &crate::support::spec());
    assert_eq!((plain.hostname, plain.cgroups_path), (None, None));
}

/// O-02: the VMM is looked for when the configuration names none.
#[test]
fn o02_hypervisor() {
    assert_eq!(
        sandbox("", &spec()).vm.hypervisor,
        Path::new("qemu-system-x86_64")
    );
    let mut host = host();
    host.hypervisor = Some("/usr/bin/qemu-system-x86_64".into());
    let plans = plans_on(&Files::default(), &host, &Config::default(), &spec()).unwrap();
    let PlanKind::Sandbox { sandbox: found, .. } = plans.kind else {
        panic!()
    };
    assert_eq!(found.vm.hypervisor, Path::new("/usr/bin/qemu-system-x86_64"));
    assert_eq!(
        sandbox("[hypervisor]\npath = \"/q\"\n", &spec()).vm.hypervisor,
        Path::new("/q")
    );
}

/// O-05: the last network namespace with a path; a new one; none.
#[test]
fn o05_network() {
    let network = |namespaces: serde_json::Value| {
        let mut spec = spec();
        spec["linux"]["namespaces"] = namespaces;
        sandbox("", &spec).network
    };
    assert_eq!(network(json!([])), NetworkPlan::None);
    assert_eq!(network(json!([{"type": "pid", "path": "/p"}])), NetworkPlan::None);
    assert_eq!(network(json!([{"type": "network"}])), NetworkPlan::New);
    assert_eq!(
        network(json!([{"type": "network", "path": ""}])),
        NetworkPlan::New
    );
    let existing = |path: &str| NetworkPlan::Existing { path: path.into() };
    assert_eq!(
        network(json!([{"type": "network", "path": "/n"}])),
        existing("/n")
    );
    let several = json!([
        {"type": "network", "path": "/one"}, {"type": "network", "path": "/two"},
        {"type": "network", "path": ""}, {"type": "network"}
    ]);
    assert_eq!(network(several), existing("/two"));
}

/// O-05: model, new-netns and monitor settings.
#[test]
fn o05_settings() {
    let toml = "[runtime]\ninternetworking_model = \"macvtap\"\nenable_netmon = true\nnetmon_path = \"/m\"\nenable_netmon_debug = true\n";
    let plan = sandbox(toml, &spec());
    assert_eq!(plan.network_model, "macvtap");
    let monitor = NetworkMonitor {
        enable: true,
        path: Some("/m".into()),
        debug: true,
    };
    assert_eq!(plan.network_monitor, monitor);
    assert_eq!(sandbox("", &spec()).network_monitor, NetworkMonitor::default());
}

/// O-20: another configuration file by annotation, only if a glob names it.
#[test]
fn o20_config_path() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("large.toml");
    std::fs::write(&file, "[hypervisor]\ndefault_memory = 4096\n").unwrap();
    let name = file.to_str().unwrap();
    let spec = annotated(&[(CONFIG_PATH_ANNOTATION, name)]);
    let mut files = Files::with(&[name]);
    let text = plans_on(&files, &host(), &Config::default(), &spec)
        .unwrap_err()
        .to_string();
    says(
        &text,
        &[CONFIG_PATH_ANNOTATION, name, "runtime.valid_config_paths"],
    );
    let allowed = config(&format!(
        "[runtime]\nvalid_config_paths = [\"{}/*.toml\"]\n",
        directory.path().display()
    ));
    let plans = plans_on(&files, &host(), &allowed, &spec).unwrap();
    let PlanKind::Sandbox { sandbox, .. } = plans.kind else {
        panic!()
    };
    assert_eq!(sandbox.vm.memory_mib, 4096);
    std::fs::write(&file, "[hypervisor]\nmemory = 1\n").unwrap();
    let text = plans_on(&files, &host(), &allowed, &spec)
        .unwrap_err()
        .to_string();
    says(&text, &[name, "unknown key hypervisor.memory"]);
    files.regular.clear();
    assert!(plans_on(&files, &host(), &allowed, &spec).is_err());
}

/// O-21: factory settings.
#[test]
fn o21_factory() {
    let plan = sandbox("", &spec()).factory;
    assert!(plan.template && plan.vm_cache_number == 0);
    let toml = "[factory]\ntemplate = \"off\"\ntemplate_path = \"/t\"\nvm_cache_number = 3\nvm_cache_endpoint = \"/e\"\n";
    let plan = sandbox(toml, &spec()).factory;
    assert!(!plan.template);
    assert_eq!(
        (plan.template_path.as_path(), plan.vm_cache_number),
        (Path::new("/t"), 3)
    );
    assert_eq!(plan.vm_cache_endpoint, Path::new("/e"));
    assert_eq!(plan.pool, 3, "the same thing by the reference's name");
    assert_eq!(sandbox("[factory]\npool = 2\n", &spec()).factory.pool, 2);
    let errors = Config::parse(Path::new("f"), "[factory]\ntemplate = \"yes\"\n").unwrap_err();
    says(
        &errors[0].to_string(),
        &["factory.template", "\"yes\"", "\"on\" or \"off\""],
    );
}

/// O-22: debug and trace switches; the agent's pid namespace only if the configuration allows it.
#[test]
fn o22_switches() {
    let plan = sandbox("", &spec());
    assert!(
        !(plan.debug || plan.trace || plan.vm.debug || plan.agent.debug || plan.agent.share_pid_namespace)
    );
    let toml = "[hypervisor]\nenable_debug = true\n[runtime]\nenable_debug = true\nenable_tracing = true\nenable_agent_pidns = true\n[agent]\nenable_debug = true\n";
    let plan = sandbox(toml, &spec());
    assert!(plan.debug && plan.trace && plan.vm.debug && plan.agent.debug && plan.agent.share_pid_namespace);
    let by_pod = annotated(&[(&format!("{RT}enable_agent_pidns"), "true")]);
    says(
        &refusal(&Config::default(), &by_pod),
        &["enable_agent_pidns", "unknown"],
    );
}

/// O-23: runtime-wide kernel parameters follow the hypervisor's, both kept; a bare key is legal, an empty one not.
#[test]
fn o23_kernel_params_of_both() {
    let toml = format!("{ALL}kernel_params = \"a=1 quiet\"\n[runtime]\nkernel_params = \"a=2 z\"\n");
    let spec = annotated(&[(&format!("{HV}kernel_params"), "m")]);
    let params: Vec<String> = sandbox(&toml, &spec)
        .vm
        .kernel_params
        .iter()
        .map(|p| format!("{}={}", p.key, p.value.as_deref().unwrap_or("-")))
        .collect();
    assert_eq!(params, ["a=1", "quiet=-", "m=-", "a=2", "z=-"]);
    let errors = Config::parse(Path::new("f"), "[runtime]\nkernel_params = \"=1\"\n").unwrap_err();
    says(
        &errors[0].to_string(),
        &["runtime.kernel_params", "\"=1\"", "non-empty key"],
    );
}

/// C-35: empty-dirs are the guest's unless configured to be shared.
#[test]
fn c35_empty_dirs() {
    assert!(!sandbox("", &spec()).share_empty_dirs);
    assert!(sandbox("[runtime]\ndisable_guest_empty_dir = true\n", &spec()).share_empty_dirs);
}
