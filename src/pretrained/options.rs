//! [`LoadOptions`]: how a checkpoint is loaded.

use std::fmt;
use std::sync::Arc;

use tch::{Device, Kind};

use super::processing::ProcessingOptions;
use super::source::Source;
use crate::unchecked::mapped::Access;
#[cfg(doc)]
use crate::Error;

/// How a checkpoint is loaded.
///
/// ```no_run
/// use tch_lens::LoadOptions;
/// use tch::Kind;
/// let model = LoadOptions::new().kind(Kind::BFloat16).open("path/to/folder")?;
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub(super) kind: Kind,
    pub(super) device: Device,
    pub(super) processing: ProcessingOptions,
    pub(super) source: Source,
    pub(super) access: Access,
    pub(super) progress: Progress,
    /// The architecture as which a checkpoint is read, in place of its own.
    pub(super) architecture: Option<&'static str>,
}

/// Called with the progress of loading.
#[derive(Clone, Default)]
pub(super) struct Progress(Option<Arc<dyn Fn(usize, usize) + Send + Sync>>);

impl Progress {
    /// So many of so many parts of the model are laid out.
    pub(super) fn report(&self, done: usize, all: usize) {
        if let Some(callback) = &self.0 {
            callback(done, all);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(…)" } else { "Progress" })
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            kind: Kind::Float,
            device: Device::Cpu,
            processing: ProcessingOptions::default(),
            source: Source::default(),
            access: Access::default(),
            progress: Progress::default(),
            architecture: None,
        }
    }
}

impl LoadOptions {
    /// fp32, on the CPU.
    pub fn new() -> Self {
        LoadOptions::default()
    }

    /// Reads a checkpoint as one of another architecture, with another head.
    pub(crate) fn read_as(mut self, architecture: &'static str) -> Self {
        self.architecture = Some(architecture);
        self
    }

    /// The kind that weights are converted to: `Float`, `BFloat16`, `Half` or `Double`.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The device that weights go to.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Whether checkpoint files are mapped into memory while a model loads, rather than read; the default is yes.
    ///
    /// A mapped file takes no memory of its own, and only what is used of it is read. But a file that is cut while it is
    /// mapped, by another program or a network file system that fails, ends the process with the signal `SIGBUS`, which
    /// no program can turn into an error. Without mapping, each file of weights is read as a whole, so that loading takes as
    /// much memory more as the files are large; a file that is cut is an [`Error::Malformed`].
    ///
    /// ```no_run
    /// use tch_lens::LoadOptions;
    /// let model = LoadOptions::new().memory_map(false).open("path/to/folder/that/may/change")?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn memory_map(mut self, yes: bool) -> Self {
        self.access = if yes { Access::Map } else { Access::Read };
        self
    }

    /// Calls this after each part of the model that is laid out and processed, with the number of parts that are done and the
    /// number of all: each block is a part, and so are unembedding and embedding. A model of a billion parameters takes
    /// seconds. Downloads from the hub come first, and show their own progress where standard error is a terminal.
    ///
    /// ```no_run
    /// use tch_lens::LoadOptions;
    /// let model = LoadOptions::new().on_progress(|done, all| eprint!("\r{done} of {all}")).open("path/to/folder")?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn on_progress(mut self, callback: impl Fn(usize, usize) + Send + Sync + 'static) -> Self {
        self.progress = Progress(Some(Arc::new(callback)));
        self
    }

    /// Leaves the weights as the checkpoint has them: none of the five steps below.
    pub fn no_processing(mut self) -> Self {
        self.processing = ProcessingOptions::none();
        self
    }

    /// Whether gains and biases of norms go into the weights that read them; the default is yes.
    pub fn fold_ln(mut self, yes: bool) -> Self {
        self.processing.fold_ln = yes;
        self
    }

    /// Whether weights that write to the stream lose their mean, where every norm takes it off; the default is yes.
    pub fn center_writing_weights(mut self, yes: bool) -> Self {
        self.processing.center_writing_weights = yes;
        self
    }

    /// Whether `W_U` loses its mean over the vocabulary; the default is yes.
    pub fn center_unembed(mut self, yes: bool) -> Self {
        self.processing.center_unembed = yes;
        self
    }

    /// Whether the values' biases go into `b_O`; the default is yes.
    pub fn fold_value_biases(mut self, yes: bool) -> Self {
        self.processing.fold_value_biases = yes;
        self
    }

    /// Whether `W_Q`, `W_K` and `W_V`, `W_O` become the orthogonal factors of their products; the default is no.
    pub fn refactor_factored_attn_matrices(mut self, yes: bool) -> Self {
        self.processing.refactor_factored_attn_matrices = yes;
        self
    }
}
