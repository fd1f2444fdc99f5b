//! O-16: assets and their digests.

use crate::support::*;
use std::path::Path;

/// SHA-512 of "abc" (FIPS 180-2, appendix C.1).
const ABC: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

/// O-16: every asset and digest by annotation reaches the plan.
#[test]
fn o16_assets_are_carried() {
    let upper = ABC.to_ascii_uppercase();
    let spec = annotated(&[
        (&format!("{HV}kernel"), "/k"),
        (&format!("{HV}kernel_hash"), ABC),
        (&format!("{HV}initrd"), "/i"),
        (&format!("{HV}initrd_hash"), &upper),
        (&format!("{HV}firmware"), "/f"),
        (&format!("{HV}firmware_hash"), ABC),
        (&format!("{HV}hypervisor_hash"), ABC),
        (&format!("{HV}asset_hash_type"), "sha512"),
        ("io.katacontainers.asset_hash_type", "sha512"),
    ]);
    let vm = sandbox(&format!("{ALL}path = \"/q\"\n"), &spec).vm;
    assert_eq!(
        (vm.kernel.as_path(), vm.initrd.as_path()),
        (Path::new("/k"), Path::new("/i"))
    );
    assert_eq!(vm.firmware.as_deref(), Some(Path::new("/f")));
    let hashes: Vec<(&str, &str, &str)> = vm
        .asset_hashes
        .iter()
        .map(|a| (a.option.as_str(), a.path.to_str().unwrap(), a.sha512.as_str()))
        .collect();
    let expected = [
        ("hypervisor_hash", "/q", ABC),
        ("kernel_hash", "/k", ABC),
        ("initrd_hash", "/i", ABC),
        ("firmware_hash", "/f", ABC),
    ];
    assert_eq!(hashes, expected);
}

/// O-16: another kind of digest, a malformed one, one without its file, and assets without a use.
#[test]
fn o16_refusals() {
    let one = |key: &str, value: &str| refusal(&config(ALL), &annotated(&[(key, value)]));
    says(
        &one(&format!("{HV}asset_hash_type"), "sha256"),
        &["\"sha256\"", "expected \"sha512\""],
    );
    says(
        &one("io.katacontainers.asset_hash_type", "md5"),
        &["io.katacontainers.asset_hash_type", "\"md5\""],
    );
    for bad in ["", "abc", &ABC[1..], &format!("{}g", &ABC[1..])] {
        says(
            &one(&format!("{HV}kernel_hash"), bad),
            &["kernel_hash", "128 hexadecimal digits"],
        );
    }
    says(
        &one(&format!("{HV}firmware_hash"), ABC),
        &["firmware_hash", "hypervisor.firmware"],
    );
    for key in ["image", "image_hash", "jailer_hash", "hypervisorctl_hash"] {
        let value = if key == "image" { "/img" } else { ABC };
        says(
            &one(&format!("{HV}{key}"), value),
            &[&format!("hypervisor.{key}"), "expected it unset"],
        );
    }
    for bad in ["", "relative", "/a/../b"] {
        says(
            &one(&format!("{HV}kernel"), bad),
            &["kernel", &format!("{bad:?}"), "absolute path"],
        );
    }
}
