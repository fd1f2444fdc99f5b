//! M-13 and D-07: options of a root file system.

use crate::support::says;
use base64::Engine as _;
use bulkhead_config::rootfs_options::{RootfsOptionError, RootfsOptions};
use bulkhead_model::plan::{OverlayLayer, VolumeContent};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

fn read(options: &[&str]) -> Result<RootfsOptions, RootfsOptionError> {
    RootfsOptions::read(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
}

fn volume(json: &Value) -> Result<VolumeContent, String> {
    let text = base64::engine::general_purpose::STANDARD.encode(json.to_string());
    let mut found =
        read(&[&format!("io.katacontainers.volume={text}")]).map_err(|error| error.to_string())?;
    Ok(found.volumes.remove(0).content)
}

/// M-13: layers, in order, with their options; other options stay.
#[test]
fn m13_layers() {
    let found = read(&[
        "rw",
        "io.katacontainers.fs-opt.layer=/a/1,erofs,ro,noatime",
        "io.katacontainers.fs-opt.layer=/a/2,ext4",
        "lowerdir=/x",
    ])
    .unwrap();
    assert_eq!(found.mount, ["rw", "lowerdir=/x"]);
    let first = OverlayLayer {
        path: "/a/1".into(),
        fstype: "erofs".into(),
        options: vec!["ro".into(), "noatime".into()],
        from_file: false,
    };
    assert_eq!(found.layers[0], first);
    assert_eq!(found.layers[1].path, Path::new("/a/2"));
    assert!(found.layers[1].options.is_empty());
}

/// M-13: `block_device=file` marks a layer, or all of them when it stands alone.
#[test]
fn m13_file_backed() {
    let mark = "io.katacontainers.fs-opt.block_device=file";
    let one = format!("io.katacontainers.fs-opt.layer=/a/1,erofs,{mark},ro");
    let found = read(&[&one, "io.katacontainers.fs-opt.layer=/a/2,erofs"]).unwrap();
    assert_eq!(
        found.layers.iter().map(|l| l.from_file).collect::<Vec<_>>(),
        [true, false]
    );
    assert_eq!(found.layers[0].options, ["ro"]);
    let found = read(&[mark, "io.katacontainers.fs-opt.layer=/a/2,erofs"]).unwrap();
    assert!(found.layers[0].from_file && found.mount.is_empty());
}

/// M-13: fewer than two fields is an error.
#[test]
fn m13_bad_layers() {
    for bad in ["", "/a", "/a,", ",erofs", "a,erofs"] {
        let text = read(&[&format!("io.katacontainers.fs-opt.layer={bad}")])
            .unwrap_err()
            .to_string();
        says(
            &text,
            &[
                &format!("{bad:?}"),
                "expected <absolute host path>,<file-system type>",
            ],
        );
    }
}

/// D-07: every type with what it needs.
#[test]
fn d07_types() {
    let nydus = json!({"config": "{}", "snapshot_dir": "/s"});
    let words = json!({"metadata": {"a": "b"}});
    let verity = json!({"hashtype": "sha256", "hash": "a".repeat(64), "blocknum": 10, "blocksize": 512, "hashsize": 4096, "offset": 8192});
    for (name, field, part) in [
        ("direct_block", "direct_volume", Some(&words)),
        ("image_raw_block", "dm_verity", None),
        ("layer_raw_block", "dm_verity", Some(&verity)),
        ("image_nydus_block", "nydus_image", Some(&nydus)),
        ("layer_nydus_block", "nydus_image", Some(&nydus)),
        ("image_nydus_fs", "nydus_image", Some(&nydus)),
        ("layer_nydus_fs", "nydus_image", Some(&nydus)),
        ("image_guest_pull", "image_pull", Some(&words)),
    ] {
        let mut value =
            json!({"volume_type": name, "source": "/dev/x", "fs_type": "ext4", "options": ["ro"], "new": 1});
        if let Some(part) = part {
            value[field] = part.clone();
        }
        assert_eq!(volume(&value).unwrap().type_name(), name);
        if part.is_some() && field != "dm_verity" {
            value.as_object_mut().unwrap().remove(field);
            says(&volume(&value).unwrap_err(), &[field, name]);
        }
    }
}

/// D-07: what is invalid is named.
#[test]
fn d07_invalid() {
    says(
        &volume(&json!({"volume_type": "floppy"})).unwrap_err(),
        &["volume_type", "\"floppy\"", "direct_block"],
    );
    says(&volume(&json!({"source": "x"})).unwrap_err(), &["volume_type"]);
    says(&volume(&json!([])).unwrap_err(), &["base64 of JSON"]);
    for bad in ["", "%%%", "e30", "bm90IGpzb24="] {
        let text = read(&[&format!("io.katacontainers.volume={bad}")])
            .unwrap_err()
            .to_string();
        says(&text, &[&format!("{bad:?}"), "base64 of JSON"]);
        assert!(!text.contains('\n'));
    }
    let good = json!({"hashtype": "sha256", "hash": "a".repeat(64), "blocknum": 10, "blocksize": 512, "hashsize": 512, "offset": 5120});
    let with = |key: &str, value: Value| {
        let mut verity = good.clone();
        verity[key] = value;
        volume(&json!({"volume_type": "image_raw_block", "dm_verity": verity}))
    };
    with("offset", json!(5632)).unwrap();
    for (key, value) in [
        ("hashtype", json!("md5")),
        ("hash", json!("xyz")),
        ("hash", json!("")),
        ("blocknum", json!(0)),
        ("blocknum", json!(u64::MAX)),
        ("blocksize", json!(0)),
        ("blocksize", json!(513)),
        ("hashsize", json!(8192)),
        ("offset", json!(0)),
        ("offset", json!(5121)),
    ] {
        let text = with(key, value.clone()).expect_err(&value.to_string());
        says(&text, &[&format!("dm_verity.{key}"), "expected"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn m13_d07_any_options(options in prop::collection::vec(prop_oneof![
        "\\PC{0,30}",
        "io\\.katacontainers\\.fs-opt\\.layer=\\PC{0,20}",
        "io\\.katacontainers\\.volume=[A-Za-z0-9+/=]{0,40}",
    ], 0..4)) {
        let _ = RootfsOptions::read(&options);
    }
}
