//! Handles on a model with dictionaries spliced into all of its runs.

use super::HookedTransformer;
use crate::pretrained::aliases;
use crate::sae::{Dictionary, SaeOptions, Splice};
use crate::{Error, Result};

impl HookedTransformer {
    /// A handle on this model whose runs have these dictionaries: SAELens' `HookedSAETransformer`. The model does not change, and neither do other
    /// handles; the weights are shared.
    ///
    /// In a run, the activation at each dictionary's `hook_out` is replaced by its reconstruction, before hooks at that point act. The steps
    /// between are hook points under SAELens' names, `<hook_out>.hook_sae_…`, like any other points: cached, hooked, patched and
    /// differentiated.
    ///
    /// | name | shows |
    /// | --- | --- |
    /// | `hook_sae_input` | the activation that is encoded, heads side by side: `[batch, pos, d_in]` |
    /// | `hook_sae_acts_pre` | features before their activation function: `[batch, pos, feature]` |
    /// | `hook_sae_acts_post` | features: `[batch, pos, feature]` |
    /// | `hook_sae_recons` | the reconstruction, before a norm is undone: `[batch, pos, d_out]` |
    /// | `hook_sae_error` | what it leaves out of the activation; on request without [`error_term`](SaeOptions::error_term) |
    /// | `hook_sae_output` | what takes the activation's place |
    ///
    /// Where nothing looks at these points and the error term is on, nothing of the dictionary is computed. Where a dictionary without error term
    /// reconstructs what an MLP writes, and nothing looks at the MLP's neurons, these are not computed. The cache holds features as
    /// [sparse rows](crate::ActivationCache::sparse).
    ///
    /// ```
    /// use tch_lens::sae::{Dictionary, DictionaryConfig, DictionaryWeights, FeatureActivation, SaeOptions};
    /// use tch_lens::{hook, HookedTransformer, Hooks, Patch, tch::{Device, Kind, Tensor}};
    /// # let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
    /// # let weights = DictionaryWeights {
    /// #     w_enc: random(&[64, 128]), b_enc: random(&[64]), w_dec: random(&[64, 128]), b_dec: random(&[128]),
    /// #     w_skip: None, threshold: None, b_gate: None, r_mag: None,
    /// # };
    /// # let sae = Dictionary::new(DictionaryConfig::new(hook::resid_post(1), FeatureActivation::TopK(8)), weights)?;
    /// let model = HookedTransformer::toy()?;
    /// let spliced = model.with_saes([sae], SaeOptions::new().error_term(true))?;
    /// let prompt = "When Mary and John went to the shop";
    /// let (_, cache) = spliced.run_with_cache(prompt)?;
    /// let acts = &cache["blocks.1.hook_resid_post.hook_sae_acts_post"]; // [batch, pos, feature]
    /// let feature = acts.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
    /// let ablation = Hooks::new().patch(hook::sae_acts_post(hook::resid_post(1)).feature(feature), Patch::zero());
    /// let without = spliced.run_with_hooks(prompt, ablation)?;
    /// # assert!(!without.equal(&model.forward(prompt)?));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] for a dictionary of another width or kind, on another device, of a model of another name, or at an activation that
    /// has one already; those of the names of hook points.
    pub fn with_saes(&self, saes: impl IntoIterator<Item = Dictionary>, options: SaeOptions) -> Result<Self> {
        let mut splices = Vec::new();
        for dictionary in saes {
            self.check_name(&dictionary)?;
            let (kind, device) = (self.kind(), self.device());
            splices.push(Splice::new(dictionary, options.clone(), self.config(), (kind, device))?);
        }
        let model = self.model.with_splices(self.model.splices().and(splices)?);
        Ok(HookedTransformer { model, ..self.clone() })
    }

    /// A handle on this model without dictionaries.
    pub fn without_saes(&self) -> Self {
        HookedTransformer { model: self.model.with_splices(Default::default()), ..self.clone() }
    }

    /// The dictionaries that are spliced into the runs of this handle.
    pub fn saes(&self) -> Vec<Dictionary> {
        self.model.splices().iter().map(|splice| splice.dictionary.clone()).collect()
    }

    /// That no dictionary is left out of what is written.
    pub(super) fn check_no_saes(&self) -> Result<()> {
        match self.model.splices().is_empty() {
            true => Ok(()),
            false => Err(Error::unsupported(
                "dictionaries are attached to this handle, and no model's file has them: save `without_saes()`, and each dictionary by itself",
            )),
        }
    }

    /// That a dictionary was not made for a model of another name, as far as both names are known.
    fn check_name(&self, dictionary: &Dictionary) -> Result<()> {
        let Some(of) = &dictionary.config().model_name else { return Ok(()) };
        let own = &self.config().model_name;
        let (known, own_known) = (aliases::known(of), aliases::known(own));
        match (known, own_known) {
            (Some(a), Some(b)) if a != b => Err(Error::Dictionary {
                name: dictionary.hook_out().to_string(),
                what: format!("it was trained on `{of}`, and this model is `{own}`"),
            }),
            _ => Ok(()),
        }
    }
}
