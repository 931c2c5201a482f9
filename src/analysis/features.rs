//! `stack_feature_results`: the features of the dictionaries in a run, as rows of the stream.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::options::FeatureOptions;
use super::passage::{Passage, Written};
use super::recipe::{Recipe, StackOptions};
use super::row_form::RowForm;
use super::stack::ResidualStack;
use super::window::View;
use crate::cache::ActivationCache;
use crate::component::{Component, Reach, Sublayer};
use crate::config::StreamConfig;
use crate::hook::{self, HookPoint, Site};
use crate::sae::Splice;
use crate::tensor::precision::widened;
use crate::{Error, Result};

impl ActivationCache {
    /// What the stream at the target is made of, with the features of the run's dictionaries as rows: `[component, batch, pos, d_model]`.
    ///
    /// A dictionary that reconstructs what a sublayer writes has, in place of that sublayer's row, a row for each feature that is active
    /// somewhere in the window (`L4F1027`), one for `b_dec` (`4_mlp_out_bias`), one for a skip connection (`4_mlp_out_skip`), and one
    /// for what these leave out of what flowed on (`4_mlp_out_error`): the error term, and what a hook changed. The last
    /// dictionary of the stream itself before the target stands for all that was written before it. A feature of a cross-layer
    /// transcoder has a row for each layer that it writes to. All rows sum to the stream.
    ///
    /// Given to [`logit_attrs`](ActivationCache::logit_attrs), the same rows are attributed to a logit.
    ///
    /// ```
    /// # use tch_lens::sae::{Dictionary, DictionaryConfig, DictionaryWeights, FeatureActivation, SaeOptions};
    /// # use tch_lens::{hook, tch::{Device, Kind, Tensor}};
    /// use tch_lens::{analysis::FeatureOptions, HookedTransformer};
    /// # let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
    /// # let weights = DictionaryWeights {
    /// #     w_enc: random(&[64, 128]), b_enc: random(&[64]), w_dec: random(&[64, 128]), b_dec: random(&[128]),
    /// #     w_skip: None, threshold: None, b_gate: None, r_mag: None,
    /// # };
    /// # let sae = Dictionary::new(DictionaryConfig::new(hook::mlp_out(1), FeatureActivation::TopK(8)), weights)?;
    /// let model = HookedTransformer::toy()?.with_saes([sae], SaeOptions::new().error_term(true))?;
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let stack = cache.stack_feature_results(FeatureOptions::new().pos(-1))?;
    /// let resid = cache[("resid_post", -1)].select(1, -1);
    /// assert!((stack.sum()? - resid).abs().max().double_value(&[]) < 1e-4);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NothingSelected`] where the run had no dictionary before the target; [`Error::NoEntry`] and [`Error::NoPosition`] naming what the run
    /// did not keep; those of [`get_full_resid_decomposition`](ActivationCache::get_full_resid_decomposition).
    pub fn stack_feature_results(&self, options: FeatureOptions) -> Result<ResidualStack> {
        let FeatureOptions { target, apply_ln, window, project } = options;
        self.decompose(&Recipe::Features, StackOptions { target, apply_ln, window, project })
    }
}

/// Rows as they are added up: `[row, batch, pos, last]`.
#[derive(Default)]
pub(crate) struct FeatureRows {
    pub(crate) components: Vec<Component>,
    pub(crate) rows: Vec<Tensor>,
}

impl View<'_> {
    /// The rows of [`Recipe::Features`].
    pub(crate) fn feature_rows(&self, reach: &Reach, passage: &Passage, form: &RowForm) -> Result<FeatureRows> {
        let config = self.model().config();
        if config.stream != StreamConfig::default() {
            return Err(Error::unsupported(
                "rows of features need a residual stream that is the sum of what sublayers write, and this model's layers multiply the stream or add embeddings to it",
            ));
        }
        let mut all = FeatureRows::default();
        let splices = || self.model().splices().iter();
        let stream = reach.stream(config);
        let of_stream = |splice: &&Splice| {
            matches!(splice.hook_out().site(), Site::ResidPre | Site::ResidMid | Site::ResidPost)
                && splice.hook_out() <= stream
        };
        let base = splices().filter(of_stream).max_by_key(|splice| splice.hook_out());
        let mut first = (0, 0);
        let mut found = false;
        if let Some(splice) = base {
            first = match (splice.hook_out().layer(), splice.hook_out().site()) {
                (Some(layer), Site::ResidPre) => (layer, 0),
                (Some(layer), Site::ResidMid) => (layer, Sublayer::Mlp as usize),
                (layer, _) => (layer.unwrap_or(0) + 1, 0),
            };
            found = true;
            let whole = self.get(splice.hook_out())?;
            self.dictionary_rows((splice, whole), passage, Written::before(first.0, first.1), form, &mut all)?;
        } else {
            for (component, point) in self.cache.embeddings() {
                let row = self.get(point)?.f_unsqueeze(0)?;
                all.components.push(component);
                all.rows.push(passage.rows(Written::FIRST, form, |form| form.rows(&row))?);
            }
        }
        for (layer, sublayer) in reach.sublayers(config) {
            if (layer, sublayer as usize) < first {
                continue;
            }
            let (out, written) = (sublayer.out(layer), Written::by(layer, sublayer));
            // What an MLP's weights write is what the MLP adds, where no norm is between.
            let is_bare = sublayer == Sublayer::Mlp && self.model().norm_after(layer, sublayer)?.is_none();
            let sites = [Some(out.site()), is_bare.then_some(Site::MlpHookOut)];
            let of_sublayer = |splice: &&Splice| {
                sites.contains(&Some(splice.hook_out().site())) && splice.hook_out().layer() == Some(layer)
            };
            let spliced = splices().find(of_sublayer);
            match spliced {
                Some(splice) => {
                    found = true;
                    self.dictionary_rows((splice, self.get(out)?), passage, written, form, &mut all)?;
                }
                None => {
                    let row = self.get(out)?.f_unsqueeze(0)?;
                    all.components.push(sublayer.component(layer));
                    all.rows.push(passage.rows(written, form, |form| form.rows(&row))?);
                }
            }
        }
        match found {
            true => Ok(all),
            false => {
                let what = "the rows of features".into();
                Err(Error::NothingSelected {
                    what,
                    hint: ": no dictionary of this run writes to the stream before the target".into(),
                })
            }
        }
    }

    /// The rows of one dictionary, which sum to what flowed on at its place.
    fn dictionary_rows(
        &self,
        (splice, whole): (&Splice, Tensor), // the latter is what flowed on: [batch, pos, d_model]
        passage: &Passage,
        written: Written,
        form: &RowForm,
        all: &mut FeatureRows,
    ) -> Result<()> {
        let (out, dictionary) = (splice.hook_out(), &splice.dictionary);
        let input = self.get(hook::sae_input(out))?;
        let (_, undo) = dictionary.normalized(&input)?;
        let nothing = FrozenNorm::of_run(None, self)?;
        let mut sum: Option<Tensor> = None;
        for (from, output) in self.writers(out) {
            let source = from.hook_out();
            let acts = from.dictionary.unscaled_sparse(&self.sparse(hook::sae_acts_post(source))?)?;
            let (active, acts) = acts.columns()?; // [row], [batch, pos, row]
            let values = undo.scale(widened(&acts)?)?;
            let w_dec = from.dictionary.decoder_rows(output, &active)?.f_to_kind(values.f_kind()?)?; // [row, d_model]
            let written_sum = values.f_matmul(&w_dec)?;
            sum = Some(match sum {
                None => written_sum,
                Some(sum) => sum.f_add(&written_sum)?,
            });
            let to = (source != out).then_some(out);
            let features = Vec::<i64>::try_from(&active)?;
            all.components.extend(features.into_iter().map(|feature| Component::Feature {
                hook: source,
                feature: feature as usize,
                to,
            }));
            let weight = w_dec.f_tr()?; // [d_model, row]
            all.rows.push(passage.rows(written, form, |form| form.neurons(&values, &weight, &nothing))?);
        }
        let zeros = whole.f_zeros_like()?;
        let bias =
            undo.apply(dictionary.b_dec().f_to_kind(zeros.f_kind()?)?.f_expand(zeros.size(), false)?.f_contiguous()?)?;
        let mut left = whole.f_sub(&bias)?;
        if let Some(sum) = sum {
            left = left.f_sub(&sum)?;
        }
        let mut rest = vec![(Component::DictionaryBias(out), bias)];
        if let Some(skip) = dictionary.skip(&input)? {
            let skip = skip.f_to_kind(zeros.f_kind()?)?;
            left = left.f_sub(&skip)?;
            rest.push((Component::DictionarySkip(out), skip));
        }
        rest.push((Component::DictionaryError(out), left));
        for (component, row) in rest {
            let row = row.f_unsqueeze(0)?;
            all.components.push(component);
            all.rows.push(passage.rows(written, form, |form| form.rows(&row))?);
        }
        Ok(())
    }

    /// The dictionaries that write to a place, and by which of their outputs.
    fn writers(&self, out: HookPoint) -> Vec<(&Splice, usize)> {
        let of = |splice: &'_ Splice| splice.outputs.iter().position(|hook| *hook == out);
        self.model().splices().iter().filter_map(|splice| Some((splice, of(splice)?))).collect()
    }
}
