//! [`DictionaryOptions`]: how dictionaries are read.

use std::path::Path;

use tch::{Device, Kind};

use super::{circuit_tracer, dictionary_learning, gemma_scope, llama_scope, openai, saelens, sparsify};
use crate::hook::HookPoint;
#[cfg(feature = "hub")]
use crate::pretrained::hub::Hub;
use crate::sae::{Dictionary, DictionarySet, FeatureActivation, InputNormalization};
use crate::unchecked::mapped::Access;
use crate::{Error, Result};

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
    pub(super) hook_in: Option<HookPoint>,
    pub(super) hook_out: Option<HookPoint>,
    pub(super) activation: Option<FeatureActivation>,
    pub(super) normalization: Option<InputNormalization>,
    #[cfg(feature = "hub")]
    hub: Hub,
    #[cfg(feature = "hub")]
    revision: Option<String>,
}

impl Default for DictionaryOptions {
    fn default() -> Self {
        DictionaryOptions {
            kind: Kind::Float,
            device: Device::Cpu,
            access: Access::default(),
            on_demand: false,
            hook_in: None,
            hook_out: None,
            activation: None,
            normalization: None,
            #[cfg(feature = "hub")]
            hub: Hub::default(),
            #[cfg(feature = "hub")]
            revision: None,
        }
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

    /// The activation that the dictionary reads, where the files do not say it, or say it otherwise. One that reconstructs what it reads
    /// reconstructs this one.
    pub fn hook_in(mut self, hook: HookPoint) -> Self {
        self.hook_in = Some(hook);
        self
    }

    /// The activation that the dictionary reconstructs, likewise.
    pub fn hook_out(mut self, hook: HookPoint) -> Self {
        self.hook_out = Some(hook);
        self
    }

    /// The activation function of one of OpenAI's dictionaries, whose older files do not say it.
    pub fn activation(mut self, activation: FeatureActivation) -> Self {
        self.activation = Some(activation);
        self
    }

    /// The norm of one of OpenAI's dictionaries, which their files do not say: by default [`InputNormalization::LayerNorm`] for TopK, and none
    /// for other activation functions, as in their code.
    pub fn normalization(mut self, normalization: InputNormalization) -> Self {
        self.normalization = Some(normalization);
        self
    }

    /// Reads one dictionary. The files say of which format it is:
    ///
    /// | files | format |
    /// | --- | --- |
    /// | `cfg.json`, `sae_weights.safetensors` | SAELens, version 6 and before |
    /// | `params.npz` | Gemma Scope 1 |
    /// | `config.json`, `params.safetensors` | Gemma Scope 2 |
    /// | `hyperparams.json`, `checkpoints/final.safetensors` | Llama Scope |
    /// | `cfg.json`, `sae.safetensors` | EleutherAI's sparsify |
    /// | `config.json`, `ae.pt` | dictionary_learning |
    /// | one `.pt` file with `latent_bias` and `pre_bias` | OpenAI; needs [`hook_in`](DictionaryOptions::hook_in), and [`activation`](DictionaryOptions::activation) where the file names none |
    ///
    /// The readers of SAELens, Gemma Scope and sparsify are tested with figures of these libraries. Those of Llama Scope, dictionary_learning and
    /// OpenAI follow the loaders of these projects' own code; they are tested with files that the tests write in their layout, and with no
    /// published dictionary. Every field of a configuration is read, refused, or known to change nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read, [`Error::Malformed`] if its contents are invalid, [`Error::ConfigField`] for a setting or an
    /// architecture that is not supported, [`Error::Dictionary`] for what does not go together, [`Error::Setting`] for an option that
    /// has no effect.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Dictionary> {
        let path = path.as_ref();
        let has = |file: &str| path.join(file).is_file();
        let is_file = |wanted: &str| path.is_file() && path.extension().is_some_and(|extension| extension == wanted);
        if is_file("pt") {
            return openai::open(path, self);
        }
        if self.activation.is_some() || self.normalization.is_some() {
            let name = if self.activation.is_some() { "activation" } else { "normalization" };
            return Err(Error::setting(name, format!("`{name}` has no effect: the files of this dictionary say it")));
        }
        match () {
            _ if is_file("npz") => gemma_scope::open_npz(path, self),
            _ if has(llama_scope::CONFIG) => llama_scope::open(path, self),
            _ if has(saelens::WEIGHTS) => saelens::open(path, self),
            _ if has(gemma_scope::NPZ) => gemma_scope::open_npz(&path.join(gemma_scope::NPZ), self),
            _ if has(gemma_scope::SAFETENSORS) => gemma_scope::open_safetensors(path, self),
            _ if has(sparsify::WEIGHTS) => sparsify::open(path, self),
            _ if has(dictionary_learning::WEIGHTS) => dictionary_learning::open(path, self),
            _ if has("config.yaml") => {
                Err(Error::malformed(path, "this is a set of dictionaries: read it with `open_set`"))
            }
            _ => {
                let what = "no dictionary of a known format is here: expected sae_weights.safetensors, params.npz, params.safetensors, hyperparams.json, sae.safetensors or ae.pt";
                Err(Error::malformed(path, what))
            }
        }
    }

    /// Which hub, with which cache and token, where it should be others than the environment says.
    #[cfg(feature = "hub")]
    pub fn hub(mut self, hub: Hub) -> Self {
        self.hub = hub;
        self
    }

    /// The revision on the hub: a branch, tag or commit; `main`, unless said otherwise.
    #[cfg(feature = "hub")]
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// Reads one dictionary of a repository of the Hugging Face hub: the folder `folder` within it, or the repository itself with `""`. Only the
    /// files of that folder are downloaded.
    ///
    /// ```no_run
    /// use tch_lens::DictionaryOptions;
    /// let sae = DictionaryOptions::new().open_hub("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82")?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hub`]; those of [`DictionaryOptions::open`].
    #[cfg(feature = "hub")]
    pub fn open_hub(&self, repository: &str, folder: &str) -> Result<Dictionary> {
        let revision = self.revision.as_deref().unwrap_or("main");
        self.open(self.hub.fetch_folder(repository, revision, folder, "a dictionary")?)
    }

    /// One file of a repository.
    #[cfg(feature = "hub")]
    pub(super) fn fetch_file(
        &self,
        repository: &str,
        revision: Option<&str>,
        file: &str,
    ) -> Result<std::path::PathBuf> {
        self.hub.fetch_file(repository, revision.unwrap_or("main"), file)
    }

    /// Reads circuit-tracer's set of a repository of the Hugging Face hub, as [`open_hub`](DictionaryOptions::open_hub) does one dictionary.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`]; those of [`DictionaryOptions::open_set`].
    #[cfg(feature = "hub")]
    pub fn open_set_hub(&self, repository: &str, folder: &str) -> Result<DictionarySet> {
        let revision = self.revision.as_deref().unwrap_or("main");
        self.open_set(self.hub.fetch_folder(repository, revision, folder, "a dictionary")?)
    }

    /// Reads circuit-tracer's transcoder set or cross-layer transcoder: a folder with `config.yaml` and `layer_0.safetensors`, …, or
    /// `W_enc_0.safetensors` and `W_dec_0.safetensors`, …. A list `transcoders` in `config.yaml` names the file of each layer instead: a
    /// path from the folder, or `hf://OWNER/NAME/FILE?revision=REVISION`, which is downloaded where the cache lacks it (feature `hub`). Such
    /// files are in circuit-tracer's own format or in one of Gemma Scope's.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read, [`Error::Malformed`] if its contents are invalid, [`Error::Dictionary`] for what does not go
    /// together.
    pub fn open_set(&self, folder: impl AsRef<Path>) -> Result<DictionarySet> {
        circuit_tracer::open(folder.as_ref(), self)
    }
}
