//! [`DictionaryOptions`]: how dictionaries are read.

use std::path::Path;

use tch::{Device, Kind};

use super::circuit_tracer;
use crate::sae::DictionarySet;
use crate::unchecked::mapped::Access;
#[cfg(doc)]
use crate::Error;
use crate::Result;

/// How dictionaries are read from files.
///
/// ```no_run
/// use tch_lens::DictionaryOptions;
/// let transcoders = DictionaryOptions::new().decoders_on_demand().open_set("path/to/transcoders")?;
/// println!("{} features", transcoders.n_features());
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DictionaryOptions {
    pub(super) kind: Kind,
    pub(super) device: Device,
    pub(super) access: Access,
    pub(super) on_demand: bool,
}

impl Default for DictionaryOptions {
    fn default() -> Self {
        DictionaryOptions { kind: Kind::Float, device: Device::Cpu, access: Access::default(), on_demand: false }
    }
}

impl DictionaryOptions {
    /// fp32, on the CPU, all weights in memory.
    pub fn new() -> Self {
        DictionaryOptions::default()
    }

    /// The kind that weights are converted to, in which the dictionaries compute.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The device that weights go to.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Leaves the decoders in their files: rows are read when their features are active or asked for, so that a million features need
    /// not fit in memory.
    ///
    /// The files stay mapped as long as the dictionaries exist, and no program may truncate or change them meanwhile: truncating a mapped file
    /// ends this process with the signal `SIGBUS`.
    pub fn decoders_on_demand(mut self) -> Self {
        self.on_demand = true;
        self
    }

    /// Whether files are mapped into memory while they are read; read as a whole otherwise.
    pub fn memory_map(mut self, yes: bool) -> Self {
        self.access = if yes { Access::Map } else { Access::Read };
        self
    }

    /// Reads circuit-tracer's transcoder set or cross-layer transcoder: a folder with `config.yaml` and `layer_0.safetensors`, …, or
    /// `W_enc_0.safetensors` and `W_dec_0.safetensors`, ….
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read, [`Error::Malformed`] if its contents are invalid, [`Error::Dictionary`] for what does not go
    /// together.
    pub fn open_set(&self, folder: impl AsRef<Path>) -> Result<DictionarySet> {
        circuit_tracer::open(folder.as_ref(), self)
    }
}
