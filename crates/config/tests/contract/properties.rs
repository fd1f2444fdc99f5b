//! No input makes planning panic: what a fuzz target would call.

use crate::support::*;
use bulkhead_config::overrides::apply;
use bulkhead_config::{Config, OPTIONS, Opt, env, plan_with, read_spec};
use bulkhead_model::ContainerId;
use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;

fn json(depth: u32) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "bind",
            "/dev/shm",
            "network",
            "c",
            "ro",
            "..",
            "/",
            "1.0.2",
            "A=b",
            "SCMP_ACT_ALLOW"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(depth, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    let known = vec![
        "ociVersion",
        "process",
        "args",
        "env",
        "cwd",
        "user",
        "uid",
        "root",
        "path",
        "mounts",
        "destination",
        "type",
        "source",
        "options",
        "linux",
        "namespaces",
        "devices",
        "resources",
        "memory",
        "limit",
        "cpu",
        "quota",
        "period",
        "seccomp",
        "annotations",
        "capabilities",
        "bounding",
        "hooks",
        "hostname",
        "cgroupsPath",
    ];
    prop_oneof![4 => prop::sample::select(known).prop_map(str::to_owned), 1 => "\\PC{0,8}"]
}

fn annotation() -> impl Strategy<Value = (String, String)> {
    let mut keys: Vec<String> = OPTIONS.iter().filter_map(Opt::annotation).collect();
    for suffix in ["cpu-quota", "cpu-period", "cpu-shares", "memory"] {
        keys.push(format!("io.kubernetes.cri.sandbox-{suffix}"));
    }
    keys.push("io.kubernetes.cri.container-type".to_owned());
    keys.push("io.katacontainers.config_path".to_owned());
    let value = prop_oneof![
        "\\PC{0,20}",
        "[0-9a-fxob_+-]{0,24}",
        "(true|false|1|0|q35|a=b|,|;| ){0,4}"
    ];
    (
        prop_oneof![8 => prop::sample::select(keys), 1 => "\\PC{0,20}"],
        value,
    )
}

fn planned(text: &[u8], config: &Config) {
    let id = ContainerId::new("c1").unwrap();
    match plan_with(
        &Files::default(),
        Path::new("/bundle"),
        text,
        &id,
        config,
        &host(),
    ) {
        Ok(plans) => {
            if let bulkhead_config::PlanKind::Sandbox { sandbox, .. } = plans.kind {
                let vm = sandbox.vm;
                assert!(vm.vcpus >= 1 && vm.vcpus <= vm.max_vcpus && vm.max_vcpus <= 255);
                assert!(vm.memory_mib >= vm.base_memory_mib && vm.memory_mib <= vm.max_memory_mib);
                for pair in vm
                    .kernel_params
                    .iter()
                    .chain(&vm.cpu_features)
                    .chain(&vm.machine_options)
                {
                    assert!(
                        !pair.key.is_empty() && !pair.key.contains([' ', ',', '=']),
                        "{pair:?}"
                    );
                }
            }
        }
        Err(error) => {
            let line = bulkhead_model::failure::chain(&error);
            assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_as_config_json(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        planned(&bytes, &Config::default());
        let _ = read_spec(Path::new("f"), &bytes);
    }

    #[test]
    fn any_json_in_any_place(place in prop::sample::select(vec![
        "/process", "/process/args", "/process/env", "/process/user", "/process/cwd", "/root", "/root/path", "/linux",
        "/mounts", "/annotations", "/hostname", "/ociVersion", "/hooks", "/linux/devices", "/linux/resources",
        "/linux/namespaces", "/linux/seccomp", "/process/capabilities",
    ]), value in json(4)) {
        let mut document = spec();
        let (parent, key) = place.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[key] = value;
        planned(&serde_json::to_vec(&document).unwrap(), &Config::default());
    }

    #[test]
    fn any_annotations(pairs in prop::collection::vec(annotation(), 0..6)) {
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let config = config(ALL);
        planned(&serde_json::to_vec(&annotated(&pairs)).unwrap(), &config);
        let before = config.clone();
        let _ = apply(config.settings(), &map(&pairs), &Files::default());
        prop_assert_eq!(config, before);
    }

    #[test]
    fn any_toml(text in "\\PC{0,200}") {
        let _ = Config::parse(Path::new("f"), &text);
    }

    #[test]
    fn any_value_of_any_option(index in 0..OPTIONS.len(), value in prop_oneof![
        "\"[ -~&&[^\"\\\\]]{0,20}\"", "-?[0-9]{1,19}", "\\[(\"[a-z/*(]{0,6}\",?){0,3}\\]", "true|false|1\\.5|\\{\\}",
    ]) {
        let opt = &OPTIONS[index];
        let text = format!("[{}]\n{} = {value}\n", opt.section.name(), opt.key);
        match Config::parse(Path::new("f"), &text) {
            // What was read is shown as TOML that reads the same.
            Ok(config) => {
                let shown = (opt.show)(config.settings());
                if !shown.is_empty() {
                    let again = Config::parse(Path::new("f"), &format!("[{}]\n{} = {shown}\n", opt.section.name(), opt.key));
                    let again = again.unwrap();
                    prop_assert_eq!(again.settings(), config.settings());
                }
            }
            Err(errors) => for error in errors {
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
            }
        }
    }

    #[test]
    fn any_environment(entries in prop::collection::vec("\\PC{0,10}=?\\PC{0,10}", 0..6)) {
        let kept = env::lenient(&entries);
        prop_assert_eq!(kept.len(), entries.iter().filter(|e| e.contains('=')).count());
        let _ = env::strict(&entries);
    }
}
