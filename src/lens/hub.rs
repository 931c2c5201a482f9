//! [`LensHub`]: published lenses by their names on the Hugging Face hub.

use super::{JacobianLens, TunedLens};
use crate::pretrained::hub::Hub;
use crate::{HookedTransformer, Result};

/// Published lenses by their names on the Hugging Face hub.
///
/// | lens | repository, unless said otherwise |
/// | --- | --- |
/// | [`tuned`](LensHub::tuned) | the space `spaces/AlignmentResearch/tuned-lens`, with a folder `lens/NAME` for each model |
/// | [`jacobian`](LensHub::jacobian) | the model repository `neuronpedia/jacobian-lens`, with a file for each model and corpus |
///
/// Files come into the cache that the hub's other tools use, and only those of the lens that is asked for. Published lenses are fitted on
/// transformers' activations, so models with layer norms must be loaded without `center_writing_weights`.
///
/// ```no_run
/// use tch_lens::lens::LensHub;
/// use tch_lens::LoadOptions;
/// let model = LoadOptions::new().center_writing_weights(false).open("gpt2")?;
/// let tuned = LensHub::new().tuned(&model, "gpt2")?;
/// let jacobian = LensHub::new().jacobian(&model, "gpt2-small/jlens/Salesforce-wikitext/gpt2_jacobian_lens.pt")?;
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LensHub {
    hub: Hub,
    repository: Option<String>,
    revision: Option<String>,
}

impl LensHub {
    /// The published repositories, on the hub that the environment names.
    pub fn new() -> Self {
        LensHub::default()
    }

    /// Which hub, with which cache and token.
    pub fn hub(mut self, hub: Hub) -> Self {
        self.hub = hub;
        self
    }

    /// Another repository: a model's, `spaces/OWNER/NAME` or `datasets/OWNER/NAME`.
    pub fn repository(mut self, name: impl Into<String>) -> Self {
        self.repository = Some(name.into());
        self
    }

    /// A branch, tag or commit; `main`, unless said otherwise.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    fn place<'a>(&'a self, published: &'a str) -> (&'a str, &'a str) {
        (self.repository.as_deref().unwrap_or(published), self.revision.as_deref().unwrap_or("main"))
    }

    /// The tuned lens of this name: the folder `lens/NAME` of the repository, with `config.json` and `params.pt` or `params.safetensors`.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`](crate::Error::Hub); those of [`TunedLens::open`].
    pub fn tuned(&self, model: &HookedTransformer, name: &str) -> Result<TunedLens> {
        let (repository, revision) = self.place("spaces/AlignmentResearch/tuned-lens");
        let folder = self.hub.fetch_folder(repository, revision, &format!("lens/{name}"), "a lens")?;
        TunedLens::open(model, folder)
    }

    /// The Jacobian lens in this file of the repository.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`](crate::Error::Hub); those of [`JacobianLens::open`].
    pub fn jacobian(&self, model: &HookedTransformer, file: &str) -> Result<JacobianLens> {
        let (repository, revision) = self.place("neuronpedia/jacobian-lens");
        JacobianLens::open(model, self.hub.fetch_file(repository, revision, file)?)
    }
}
