//! Options of a root file system's mount → layers and virtual volumes (M-13, D-07).
//!
//! Owns what snapshotters may write there and what is wrong with it. Never: whether a volume can be served
//! (the engine's), nor the devices. Called by nobody yet: what it reads is served with D-07, which is pending.

use base64::Engine as _;
use bulkhead_model::plan::{NydusImage, OverlayLayer, Verity, VirtualVolume, VolumeContent};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Prefix of an option that names a layer.
pub(crate) const LAYER: &str = "io.katacontainers.fs-opt.layer=";

/// Option that marks a layer as backed by a file.
pub(crate) const BLOCK_FILE: &str = "io.katacontainers.fs-opt.block_device=file";

/// Prefix of an option that describes a virtual volume.
pub(crate) const VOLUME: &str = "io.katacontainers.volume=";

/// Why an option of a root file system cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootfsOptionError {
    /// A layer without path or type.
    #[error("rootfs option {LAYER}{value:?}: expected <absolute host path>,<file-system type>[,<option>…]")]
    Layer {
        /// What follows the prefix.
        value: String,
    },
    /// Not base64, or not JSON of the right shape.
    #[error("rootfs option {VOLUME}{value:?}: expected a virtual volume as base64 of JSON: {reason}")]
    Encoding {
        /// What follows the prefix, shortened.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// A field of the volume.
    #[error("virtual volume: {field} is {value:?}: expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What belongs there.
        expected: String,
    },
}

/// What the options say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsOptions {
    /// Layers, in order.
    pub layers: Vec<OverlayLayer>,
    /// Virtual volumes, in order.
    pub volumes: Vec<VirtualVolume>,
    /// Every other option, in order: for the mount itself.
    pub mount: Vec<String>,
}

impl RootfsOptions {
    /// Reads the options of one mount.
    ///
    /// # Errors
    /// The first [`RootfsOptionError`].
    pub fn read(options: &[String]) -> Result<Self, RootfsOptionError> {
        let mut found = Self::default();
        for option in options {
            if let Some(value) = option.strip_prefix(LAYER) {
                found.layers.push(layer(value)?);
            } else if let Some(value) = option.strip_prefix(VOLUME) {
                found.volumes.push(volume(value)?);
            } else {
                found.mount.push(option.clone());
            }
        }
        // The mark stands beside the layers as well as among a layer's own options.
        if found.mount.iter().any(|option| option == BLOCK_FILE) {
            found.mount.retain(|option| option != BLOCK_FILE);
            for layer in &mut found.layers {
                layer.from_file = true;
            }
        }
        Ok(found)
    }
}

fn layer(value: &str) -> Result<OverlayLayer, RootfsOptionError> {
    let refuse = || RootfsOptionError::Layer {
        value: value.to_owned(),
    };
    let mut fields = value.split(',');
    let (Some(path), Some(fstype)) = (fields.next(), fields.next()) else {
        return Err(refuse());
    };
    if !path.starts_with('/') || fstype.is_empty() {
        return Err(refuse());
    }
    let mut options: Vec<String> = fields
        .filter(|field| !field.is_empty())
        .map(str::to_owned)
        .collect();
    let from_file = options.iter().any(|option| option == BLOCK_FILE);
    options.retain(|option| option != BLOCK_FILE);
    Ok(OverlayLayer {
        path: PathBuf::from(path),
        fstype: fstype.to_owned(),
        options,
        from_file,
    })
}

/// The JSON as snapshotters write it.
#[derive(Deserialize)]
struct Wire {
    volume_type: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    fs_type: String,
    #[serde(default)]
    options: Vec<String>,
    direct_volume: Option<Words>,
    image_pull: Option<Words>,
    nydus_image: Option<NydusImage>,
    dm_verity: Option<Verity>,
}

#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// The types there are; see [`VolumeContent`].
const TYPES: [&str; 8] = [
    "direct_block",
    "image_raw_block",
    "layer_raw_block",
    "image_nydus_block",
    "layer_nydus_block",
    "image_nydus_fs",
    "layer_nydus_fs",
    "image_guest_pull",
];

fn volume(value: &str) -> Result<VirtualVolume, RootfsOptionError> {
    let encoding = |reason: String| RootfsOptionError::Encoding {
        value: crate::spec::shortened(value),
        reason: reason.replace('\n', " "),
    };
    let json = base64::engine::general_purpose::STANDARD
        .decode(value)
        .map_err(|error| encoding(error.to_string()))?;
    let wire: Wire = serde_json::from_slice(&json).map_err(|error| encoding(error.to_string()))?;
    let part = |field: &'static str| RootfsOptionError::Field {
        field,
        value: String::new(),
        expected: format!("it to be there for {}", wire.volume_type),
    };
    let verity = || wire.dm_verity.clone().map(checked).transpose();
    let nydus = || match wire.nydus_image.clone() {
        Some(image) if image.config.is_empty() => Err(part("nydus_image.config")),
        Some(image) if image.snapshot_dir.as_os_str().is_empty() => Err(part("nydus_image.snapshot_dir")),
        Some(image) => Ok(image),
        None => Err(part("nydus_image")),
    };
    let words = |words: &Option<Words>, field| {
        words
            .as_ref()
            .map(|w| w.metadata.clone())
            .ok_or_else(|| part(field))
    };
    let content = match wire.volume_type.as_str() {
        "direct_block" => VolumeContent::DirectBlock {
            metadata: words(&wire.direct_volume, "direct_volume")?,
        },
        "image_raw_block" => VolumeContent::ImageRawBlock { verity: verity()? },
        "layer_raw_block" => VolumeContent::LayerRawBlock { verity: verity()? },
        "image_nydus_block" => VolumeContent::ImageNydusBlock(nydus()?),
        "layer_nydus_block" => VolumeContent::LayerNydusBlock(nydus()?),
        "image_nydus_fs" => VolumeContent::ImageNydusFs(nydus()?),
        "layer_nydus_fs" => VolumeContent::LayerNydusFs(nydus()?),
        "image_guest_pull" => VolumeContent::ImageGuestPull {
            metadata: words(&wire.image_pull, "image_pull")?,
        },
        other => {
            return Err(RootfsOptionError::Field {
                field: "volume_type",
                value: crate::spec::shortened(other),
                expected: format!("one of {}", TYPES.join(", ")),
            });
        }
    };
    Ok(VirtualVolume {
        content,
        source: wire.source,
        fs_type: wire.fs_type,
        options: wire.options,
    })
}

/// dm-verity's own rules (kernel documentation, "dm-verity", construction parameters).
fn checked(verity: Verity) -> Result<Verity, RootfsOptionError> {
    let field = |field, value: String, expected: &str| {
        Err(RootfsOptionError::Field {
            field,
            value,
            expected: expected.to_owned(),
        })
    };
    let digits = match verity.hashtype.as_str() {
        "sha256" => 64,
        "sha1" => 40,
        _ => return field("dm_verity.hashtype", verity.hashtype, "sha256 or sha1"),
    };
    if verity.hash.len() != digits || !verity.hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return field(
            "dm_verity.hash",
            verity.hash,
            &format!("{digits} hexadecimal digits"),
        );
    }
    for (name, size) in [
        ("dm_verity.blocksize", verity.blocksize),
        ("dm_verity.hashsize", verity.hashsize),
    ] {
        if !size.is_power_of_two() || !(512..=4096).contains(&size) {
            return field(name, size.to_string(), "512, 1024, 2048 or 4096");
        }
    }
    if verity.blocknum == 0 || verity.blocknum > u64::from(u32::MAX) {
        return field(
            "dm_verity.blocknum",
            verity.blocknum.to_string(),
            "1 to 4294967295",
        );
    }
    // Both factors are bounded above: no overflow.
    if !verity.offset.is_multiple_of(verity.hashsize) || verity.offset < verity.blocksize * verity.blocknum {
        return field(
            "dm_verity.offset",
            verity.offset.to_string(),
            "a multiple of hashsize behind the data",
        );
    }
    Ok(verity)
}
