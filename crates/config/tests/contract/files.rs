//! Configuration files: where they are, how they add up, what is wrong with them.

use crate::support::says;
use bulkhead_config::{Config, ConfigError, Source};
use std::path::Path;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

fn load(files: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&Source::Directory(directory(files).path().to_owned()))
}

fn errors(text: &str) -> Vec<String> {
    let errors = Config::parse(Path::new("f.toml"), text).unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_needed() {
    assert_eq!(load(&[]).unwrap(), Config::default());
    let nowhere = Source::Directory("/nowhere/at/all".into());
    assert_eq!(Config::load(&nowhere).unwrap(), Config::default());
    assert_eq!(Source::named(None), Source::Directory("/etc/bulkhead".into()));
    assert_eq!(Source::named(Some(Path::new("/x"))), Source::File("/x".into()));
}

#[test]
fn drop_ins_win_in_the_order_of_their_names() {
    let config = load(&[
        (
            "config.toml",
            "[hypervisor]\ndefault_vcpus = 2\ndefault_memory = 512\nmemory_slots = 4\n",
        ),
        ("config.d/20-b.toml", "[hypervisor]\ndefault_vcpus = 4\n"),
        (
            "config.d/10-a.toml",
            "[hypervisor]\ndefault_vcpus = 3\ndefault_memory = 1024\n",
        ),
        ("config.d/30-c.toml.off", "not even TOML"),
        ("config.d/README", "neither"),
    ])
    .unwrap();
    let vm = &config.settings().hypervisor;
    assert_eq!(
        (vm.default_vcpus, vm.default_memory, vm.memory_slots),
        (4, 1024, 4)
    );
    assert!(
        config
            .origin("hypervisor.default_vcpus")
            .unwrap()
            .ends_with("config.d/20-b.toml")
    );
    assert!(
        config
            .origin("hypervisor.memory_slots")
            .unwrap()
            .ends_with("config.toml")
    );
    assert_eq!(config.origin("hypervisor.kernel"), None);
}

#[test]
fn a_named_file_stands_alone_and_must_exist() {
    let directory = directory(&[
        ("config.toml", "[hypervisor]\ndefault_vcpus = 2\n"),
        ("other.toml", "[hypervisor]\ndefault_memory = 512\n"),
        ("config.d/a.toml", "[hypervisor]\nmemory_slots = 4\n"),
    ]);
    let config = Config::load(&Source::File(directory.path().join("other.toml"))).unwrap();
    let vm = &config.settings().hypervisor;
    assert_eq!(
        (vm.default_vcpus, vm.default_memory, vm.memory_slots),
        (1, 512, 10)
    );
    let missing = directory.path().join("missing.toml");
    let error = Config::load(&Source::File(missing.clone())).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    says(&error.to_string(), &[missing.to_str().unwrap()]);
    let error = Config::load(&Source::File(directory.path().to_owned())).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
}

/// A file that is there and cannot be read is no default.
#[test]
fn a_dangling_link_is_an_error() {
    let directory = directory(&[]);
    std::os::unix::fs::symlink("/nowhere", directory.path().join("config.toml")).unwrap();
    let error = Config::load(&Source::Directory(directory.path().to_owned())).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
}

#[test]
fn not_toml_says_the_line() {
    let error = load(&[("config.toml", "[hypervisor]\n\ndefault_vcpus = = 2\n")]).unwrap_err();
    let text = error.to_string();
    says(&text, &["config.toml:3: not TOML"]);
    assert!(!text.contains('\n'), "{text}");
    says(
        &errors("[hypervisor]\ndefault_vcpus = 1\ndefault_vcpus = 2\n")[0],
        &["f.toml:3", "duplicate"],
    );
}

#[test]
fn unknown_keys_are_errors_with_a_suggestion() {
    let cases = [
        (
            "[hypervisor]\ndefault_vcpu = 1\n",
            "hypervisor.default_vcpu",
            "hypervisor.default_vcpus",
        ),
        (
            "[hypervisor]\ninternetworking_model = \"none\"\n",
            "hypervisor.internetworking_model",
            "runtime.internetworking_model",
        ),
        (
            "[hypervisor]\nenable_debgu = true\n",
            "enable_debgu",
            "hypervisor.enable_debug",
        ),
        (
            "[agent]\nenable_debgu = true\n",
            "enable_debgu",
            "agent.enable_debug",
        ),
        ("[hypervizor]\ndefault_vcpus = 1\n", "hypervizor", "hypervisor"),
        ("default_vcpus = 1\n", "default_vcpus", "hypervisor.default_vcpus"),
        ("[resource]\nswappiness = 1\n", "resource", "runtime"),
    ];
    for (text, key, meant) in cases {
        let errors = errors(text);
        says(
            &errors[0],
            &[
                "f.toml",
                &format!("unknown key {}", if key.contains('.') { key } else { "" }),
            ],
        );
        says(&errors[0], &[key]);
        if meant != "runtime" {
            says(&errors[0], &[&format!("did you mean {meant}?")]);
        }
    }
    assert!(!errors("[hypervisor]\nzzzzzz = 1\n")[0].contains("did you mean"));
}

#[test]
fn every_mistake_is_told() {
    let errors = errors("[hypervisor]\ndefault_vcpus = -1\nxyzzy = 1\n[runtime]\nenable_debug = \"yes\"\n");
    assert_eq!(errors.len(), 3, "{errors:?}");
    says(
        &errors.join("\n"),
        &[
            "default_vcpus is -1",
            "unknown key hypervisor.xyzzy",
            "runtime.enable_debug is \"yes\"",
        ],
    );
    says(
        &self::errors("hypervisor = 1\n")[0],
        &["hypervisor is 1", "a table: [hypervisor]"],
    );
}

/// O-17 holds for annotations; TOML has its own booleans and integers.
#[test]
fn o17_toml_values_are_typed() {
    for (key, bad) in [
        ("default_vcpus", "\"1\""),
        ("default_vcpus", "0"),
        ("default_vcpus", "256"),
        ("default_vcpus", "1.0"),
        ("default_memory", "4294967296"),
        ("default_memory", "9223372036854775807"),
        ("enable_swap", "1"),
        ("enable_swap", "\"true\""),
        ("kernel", "\"relative\""),
        ("kernel", "\"\""),
        ("kernel_params", "[\"a\"]"),
        ("enable_annotations", "\".*\""),
    ] {
        let errors = errors(&format!("[hypervisor]\n{key} = {bad}\n"));
        says(&errors[0], &[&format!("hypervisor.{key} is {bad}"), "expected"]);
    }
    // 0x10 is an integer in TOML.
    let config = Config::parse(Path::new("f"), "[hypervisor]\nmemory_slots = 0x10\n").unwrap();
    assert_eq!(config.settings().hypervisor.memory_slots, 16);
    let config = Config::parse(Path::new("f"), "[hypervisor]\npath = \"\"\n").unwrap();
    assert_eq!(config.settings().hypervisor.path, None);
}

#[test]
fn contradictions_name_both_values() {
    for (text, parts) in [
        (
            "[hypervisor]\ndefault_vcpus = 3\ndefault_max_vcpus = 2\n",
            ["default_vcpus is 3", "which is 2"],
        ),
        (
            "[hypervisor]\ndefault_memory = 300\ndefault_maxmemory = 200\n",
            ["default_memory is 300", "which is 200"],
        ),
        (
            "[runtime]\ndisable_new_netns = true\n",
            ["disable_new_netns", "\"tcfilter\""],
        ),
        (
            "[hypervisor]\nenable_hugepages = true\nfile_mem_backend = \"/m\"\n",
            ["/m", "enable_hugepages"],
        ),
    ] {
        says(&errors(text)[0], &parts);
    }
}
