//! Annotations → settings: each line is the number of an option, a blank and its value.
#![no_main]

#[path = "../host.rs"]
mod host;

use bulkhead_config::overrides::{apply, apply_resource};
use bulkhead_config::{Annotations, Config, OPTIONS, Opt};
use bulkhead_model::failure;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CONFIG: LazyLock<Config> = LazyLock::new(host::config);
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| OPTIONS.iter().filter_map(Opt::annotation).collect());

fuzz_target!(|text: &str| {
    let annotations: Annotations = text
        .lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            let option = name.parse::<usize>().ok().map(|n| &NAMES[n % NAMES.len()]);
            (
                option.cloned().unwrap_or_else(|| name.to_owned()),
                value.to_owned(),
            )
        })
        .collect();
    if let Err(error) = apply(CONFIG.settings(), &annotations, &host::Files) {
        host::one_line(&failure::chain(&error));
    }
    if let Err(error) = apply_resource(&annotations, &host::Files) {
        host::one_line(&failure::chain(&error));
    }
});
