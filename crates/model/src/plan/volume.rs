//! What a snapshotter asks for in the options of a root file system (M-13, D-07).
//!
//! Owns: its parts. Never: whether they can be served. Made by `config`; read by nobody yet, as both rows are pending.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A layer of an overlay that is a disk of the VM; layers are listed from the lowest option to the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayLayer {
    /// File or device on the host, absolute.
    pub path: PathBuf,
    /// File-system type.
    pub fstype: String,
    /// Mount options.
    pub options: Vec<String>,
    /// The path is a file, not a device.
    pub from_file: bool,
}

/// Integrity data of a read-only block volume (dm-verity).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verity {
    /// `sha256` or `sha1`.
    pub hashtype: String,
    /// Root hash in hexadecimal.
    pub hash: String,
    /// Data blocks.
    pub blocknum: u64,
    /// Size of a data block in bytes.
    pub blocksize: u64,
    /// Size of a hash block in bytes.
    pub hashsize: u64,
    /// Where the hash tree starts, in bytes.
    pub offset: u64,
}

/// What a virtual volume is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "volume_type", rename_all = "snake_case")]
pub enum VolumeContent {
    /// A block device assigned by a storage driver.
    DirectBlock {
        /// The driver's words.
        metadata: BTreeMap<String, String>,
    },
    /// A whole image as one raw disk.
    ImageRawBlock {
        /// Its integrity data, if given.
        verity: Option<Verity>,
    },
    /// One layer of an image as a raw disk.
    LayerRawBlock {
        /// Its integrity data, if given.
        verity: Option<Verity>,
    },
    /// A whole image in nydus form, as a disk.
    ImageNydusBlock(NydusImage),
    /// One layer in nydus form, as a disk.
    LayerNydusBlock(NydusImage),
    /// A whole image in nydus form, as a file system.
    ImageNydusFs(NydusImage),
    /// One layer in nydus form, as a file system.
    LayerNydusFs(NydusImage),
    /// The guest fetches the image.
    ImageGuestPull {
        /// The snapshotter's words.
        metadata: BTreeMap<String, String>,
    },
}

impl VolumeContent {
    /// The type's name on the wire.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::DirectBlock { .. } => "direct_block",
            Self::ImageRawBlock { .. } => "image_raw_block",
            Self::LayerRawBlock { .. } => "layer_raw_block",
            Self::ImageNydusBlock(_) => "image_nydus_block",
            Self::LayerNydusBlock(_) => "layer_nydus_block",
            Self::ImageNydusFs(_) => "image_nydus_fs",
            Self::LayerNydusFs(_) => "layer_nydus_fs",
            Self::ImageGuestPull { .. } => "image_guest_pull",
        }
    }
}

/// Where a nydus image is described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NydusImage {
    /// Its configuration.
    pub config: String,
    /// The snapshot's directory.
    pub snapshot_dir: PathBuf,
}

/// A volume that a snapshotter describes in place of a mounted directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualVolume {
    /// What it is made of.
    #[serde(flatten)]
    pub content: VolumeContent,
    /// Where it is on the host; empty when the type needs none.
    pub source: String,
    /// File-system type; may be empty.
    pub fs_type: String,
    /// Mount options.
    pub options: Vec<String>,
}
