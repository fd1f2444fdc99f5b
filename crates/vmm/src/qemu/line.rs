//! A command line as it grows.
//!
//! Owns: how an option and a value are written. Never: which. Called by `command_line` and `memory`.

use bulkhead_model::VmPlan;
use bulkhead_model::vm::KeyValue;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Arguments, in their order.
pub(super) struct Line(pub(super) Vec<OsString>);

impl Line {
    pub(super) fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    pub(super) fn option(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
        self
    }
}

/// Appends `,key[=value]…`; a comma inside a value is doubled, as QEMU wants it.
pub(super) fn pairs(text: &mut String, pairs: &[KeyValue]) {
    for pair in pairs {
        text.push(',');
        text.push_str(&pair.key.replace(',', ",,"));
        if let Some(value) = &pair.value {
            text.push('=');
            text.push_str(&value.replace(',', ",,"));
        }
    }
}

/// A virtio device, modern only: the old interface would cost I/O space and its probing.
pub(super) fn virtio(plan: &VmPlan, device: &str) -> String {
    let iommu = if plan.iommu_platform {
        ",iommu_platform=on"
    } else {
        ""
    };
    format!("{device},disable-legacy=on{iommu}")
}

/// A path inside an option list: commas are doubled.
pub(super) fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    OsString::from_vec(bytes)
}
