//! `decompose_resid`, `accumulated_resid`, `apply_ln_to_stack`, `stack_activation`: the stream, sublayer by sublayer.

use tch::Tensor;

use super::interventions::{self, Parts};
use super::labelled::LabelledTensor;
use super::options::{AccumulateOptions, DecomposeOptions, Mode, Scale};
use super::passage::{Passage, Written};
use super::recipe::RowValues;
use super::stack::{Contributions, ResidualStack};
use super::window::{View, Window};
use crate::cache::ActivationCache;
use crate::component::{Component, Reach, Sublayer, Target};
use crate::config::PositionalEmbedding;
use crate::hook::{self, HookName, HookPoint};
use crate::{Error, Result};

impl ActivationCache {
    /// The stream at the target as the sum of what each sublayer wrote: `[component, batch, pos, d_model]`.
    ///
    /// Rows: `embed`, `pos_embed` (where it is part of the stream), then `0_attn_out`, `0_mlp_out`, …; in a decoder with
    /// `0_cross_attn_out` between these, which counts as attention. With
    /// [`Mode::All`] and the embeddings they sum to the stream, for every model: `resid = Σ rows`. Where norms stand in the stream
    /// itself (GPT-1), rows are what arrives through them at their scales in the run, and a row `bias` is what they add. Where a hook
    /// changed the stream itself, the rest is a row `intervention`.
    ///
    /// ```
    /// # use tch_lens::{analysis::{DecomposeOptions, Mode, Target}, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let stack = cache.decompose_resid(DecomposeOptions::new().target(Target::Attn(2)))?;
    /// assert!((stack.sum()? - &cache["blocks.2.hook_resid_pre"]).abs().max().double_value(&[]) < 1e-4);
    /// let attn = cache.decompose_resid(DecomposeOptions::new().mode(Mode::Attn).incl_embeds(false).pos(-1).apply_ln(true))?;
    /// assert_eq!(attn.tensor().size(), [4, 1, 128]); // [component, batch, d_model]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] naming what the run did not keep, [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn decompose_resid(&self, options: DecomposeOptions) -> Result<ResidualStack> {
        let DecomposeOptions { target, apply_ln, window, mode, incl_embeds } = options;
        let reach = target.reach(self.model().config())?;
        let window = window.of(self)?;
        let mut rows = if incl_embeds { self.embeddings() } else { Vec::new() };
        let config = self.model().config();
        for (layer, sublayer) in reach.sublayers(config) {
            let asked = match mode {
                Mode::All => true,
                Mode::Attn => sublayer.is_attention(),
                Mode::Mlp => sublayer == Sublayer::Mlp,
            };
            if asked {
                rows.push((sublayer.component(layer), sublayer.out(layer)));
            }
        }
        let embeddings = if mode == Mode::All { reach.layers_with_embeddings(config) } else { 0 };
        rows.extend((0..embeddings).map(|layer| (Component::PleOut(layer), hook::ple_out(layer))));
        let view = View::new(self, &window);
        let passage = Passage::of(&view, &reach)?;
        let mut rows = view.rows_of_points(rows, &reach, Some(&passage))?;
        let is_complete = mode == Mode::All && incl_embeds;
        if is_complete && passage.adds() {
            let nothing = view.get(hook::embed())?.f_zeros_like()?;
            let added = passage.accumulate(reach.sublayers(config), nothing, |_, _| Ok(None))?.f_unsqueeze(0)?;
            rows.components.push(Component::Bias);
            rows.values = Tensor::f_cat(&[&rows.values, &added], 0)?;
        }
        if is_complete && interventions::breaks(Parts { heads: false, neurons: false }, &view, &reach)? {
            let sum = rows.values.f_sum_dim_intlist([0i64].as_slice(), true, None)?;
            rows.intervene(&view.stream(&reach)?.f_sub(&sum)?)?;
        }
        let stack = self.stack(rows, window, &reach, is_complete);
        if apply_ln {
            stack.apply_ln()
        } else {
            Ok(stack)
        }
    }

    /// The whole stream before each block up to the target: `[component, batch, pos, d_model]`; the rows of a logit lens.
    ///
    /// Rows: `0_pre`, (`0_mid`, and in a decoder `0_mid_cross`), `1_pre`, …, and `final_post` for the unembedding. With `apply_ln`, rows pass through the target's
    /// norm at its scale in the run or, with [`Scale::Own`], each at its own. (TransformerLens takes each row's own at the unembedding
    /// and the target's elsewhere; here one says which.)
    ///
    /// ```
    /// # use tch_lens::{analysis::AccumulateOptions, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let stack = cache.accumulated_resid(AccumulateOptions::new().pos(-1))?;
    /// assert_eq!(stack.labels(), ["0_pre", "1_pre", "2_pre", "3_pre", "final_post"]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] naming what the run did not keep, [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn accumulated_resid(&self, options: AccumulateOptions) -> Result<ResidualStack> {
        let AccumulateOptions { target, apply_ln, window, incl_mid, scale } = options;
        if scale.is_some() && !apply_ln {
            return Err(Error::setting("scale", "a scale says how rows are normalised: add `apply_ln(true)`"));
        }
        let window = window.of(self)?;
        let config = self.model().config();
        let reach = target.reach(config)?;
        let has_cross = config.attention.cross.is_some();
        let has_mid = !config.attn_only() && !config.parallel_attn_mlp;
        let last = match reach.target {
            Target::Unembed => config.n_layers,
            Target::Attn(layer) | Target::CrossAttn(layer) | Target::Mlp(layer) => layer as usize,
        };
        let mut rows = Vec::new();
        for layer in 0..=last {
            if layer == config.n_layers {
                rows.push((Component::FinalPost, hook::stream_after(config, layer - 1)));
                continue;
            }
            rows.push((Component::ResidPre(layer), hook::resid_pre(layer)));
            // Of the last layer, what comes before the target: all that there is, or where it is what the target reads.
            let is_read = reach.stream(config);
            let mids = [
                (has_mid, Component::ResidMid(layer), hook::resid_mid(layer)),
                (has_cross, Component::ResidMidCross(layer), hook::resid_mid_cross(layer)),
            ];
            for (_, component, point) in mids.into_iter().filter(|(has, ..)| *has) {
                if incl_mid && (layer < last || point < is_read) || point == is_read {
                    rows.push((component, point));
                }
            }
        }
        let rows = View::new(self, &window).rows_of_points(rows, &reach, None)?;
        let stack = self.stack(rows, window, &reach, false);
        match (apply_ln, scale.unwrap_or_default()) {
            (false, _) => Ok(stack),
            (true, Scale::Target) => stack.apply_ln(),
            (true, Scale::Own) => stack.apply_own_ln(),
        }
    }

    /// TransformerLens' `apply_ln_to_stack`: [`ResidualStack::apply_ln`], which knows the target and the slices already.
    ///
    /// ```
    /// # use tch_lens::{analysis::{DecomposeOptions, Target}, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John")?;
    /// let stack = cache.decompose_resid(DecomposeOptions::new().target(Target::Mlp(1)))?;
    /// let normalized = cache.apply_ln_to_stack(&stack)?; // what the MLP of layer 1 reads, row by row
    /// let read = &cache["blocks.1.ln2.hook_normalized"];
    /// assert!((normalized.sum()? - read).abs().max().double_value(&[]) < 1e-4);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OtherRun`] for a stack of another run; those of [`ResidualStack::apply_ln`].
    pub fn apply_ln_to_stack(&self, stack: &ResidualStack) -> Result<ResidualStack> {
        self.refuse_other_run(stack)?;
        stack.apply_ln()
    }

    /// One activation of every layer, stacked: `[layer, …]`; `"pattern"` gives `[layer, batch, head, query, key]`.
    ///
    /// `layers` counts from the first (negative: leaves out so many of the last); all of them for `None`.
    ///
    /// ```
    /// # use tch_lens::HookedTransformer;
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John")?;
    /// assert_eq!(cache.stack_activation("pattern", None)?.size(), [4, 1, 4, 5, 5]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownHook`], [`Error::NoEntry`], [`Error::LayerOutOfRange`].
    pub fn stack_activation(&self, name: &str, layers: Option<i64>) -> Result<Tensor> {
        let n_layers = self.model().config().n_layers;
        let count = match layers {
            None => n_layers,
            Some(count) if count == n_layers as i64 => n_layers,
            Some(count) => self.model().config().layer(count)?,
        };
        if count == 0 {
            return Err(Error::wrong_input("stacking an activation needs at least one layer"));
        }
        let tensors = (0..count as i64)
            .map(|layer| Ok(self.get((name, layer).resolve(self.model().config())?)?.shallow_clone()))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_stack(&tensors, 0)?)
    }

    /// The embeddings that are part of the stream.
    pub(crate) fn embeddings(&self) -> Vec<(Component, HookPoint)> {
        let mut rows = vec![(Component::Embed, hook::embed())];
        // Short-former's positions go to queries and keys only.
        if self.model().config().positional_embedding_type() == PositionalEmbedding::Standard {
            rows.push((Component::PosEmbed, hook::pos_embed()));
        }
        if self.model().config().embed.token_types > 0 {
            rows.push((Component::TokenTypeEmbed, hook::token_type_embed()));
        }
        rows
    }

    fn stack(&self, rows: RowValues, window: Window, reach: &Reach, is_complete: bool) -> ResidualStack {
        LabelledTensor::new(rows, self.clone(), window, true, Contributions::of_stream(reach.target, is_complete))
    }
}

impl View<'_> {
    /// Cached activations as rows, as they are or as a passage carries them.
    fn rows_of_points(
        &self,
        rows: Vec<(Component, HookPoint)>,
        reach: &Reach,
        passage: Option<&Passage>,
    ) -> Result<RowValues> {
        if rows.is_empty() {
            let what = format!("the decomposition of {} that was asked for", reach.target);
            return Err(Error::NothingSelected { what, hint: ": nothing has written to the stream yet".into() });
        }
        let tensor = |(component, point): &(Component, HookPoint)| match passage {
            Some(passage) => passage.carry(Written::of(component), self.get(*point)?),
            None => self.get(*point),
        };
        let tensors = rows.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        let values = Tensor::f_stack(&tensors, 0)?; // [component, batch, pos, d_model]
        Ok(RowValues { components: rows.into_iter().map(|(component, _)| component).collect(), values })
    }
}

impl ResidualStack {
    /// Each row through the target's norm at its own scale, bias included: what the target would read if the model ended there.
    fn apply_own_ln(&self) -> Result<Self> {
        let values = match self.model().norm_before(self.target())? {
            Some(placed) => placed.norm.apply(self.values())?,
            None => self.values().shallow_clone(),
        };
        self.normalized(self.row_values(values))
    }
}
