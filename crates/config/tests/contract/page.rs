//! docs/options.md is made from the table.

use bulkhead_config::reference;
use std::path::Path;

#[test]
fn reference_page_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/options.md");
    let fresh = reference::page();
    if std::env::var_os("BULKHEAD_BLESS").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == fresh,
        "docs/options.md is stale: BULKHEAD_BLESS=1 cargo test -p bulkhead-config reference_page"
    );
}

#[test]
fn finds_by_key_name_and_annotation() {
    let found = reference::find("kernel_params").unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(reference::find("agent.kernel_modules").unwrap().len(), 1);
    assert_eq!(
        reference::find("io.katacontainers.asset_hash_type").unwrap()[0].key,
        "asset_hash_type"
    );
    let error = reference::find("hypervisor.default_vcpu").unwrap_err();
    assert_eq!(error.suggestion.as_deref(), Some("hypervisor.default_vcpus"));
    let error = reference::find("boot_time").unwrap_err();
    assert_eq!(error.suggestion.as_deref(), Some("hypervisor.boot_timeout"));
    assert_eq!(reference::find("zzz").unwrap_err().suggestion, None);
}
