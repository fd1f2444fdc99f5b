//! config.json → plans: any text is planned or refused in one line.
#![no_main]

#[path = "../host.rs"]
mod host;

use bulkhead_config::{Config, plan_with};
use bulkhead_model::{ContainerId, failure};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

static CONFIG: LazyLock<Config> = LazyLock::new(host::config);
static ID: LazyLock<ContainerId> = LazyLock::new(|| ContainerId::new("c1").expect("an id"));

fuzz_target!(|text: &[u8]| {
    let bundle = Path::new("/bundle");
    if let Err(error) = plan_with(&host::Files, bundle, text, &ID, &CONFIG, &host::FACTS) {
        host::one_line(&failure::chain(&error));
    }
});
