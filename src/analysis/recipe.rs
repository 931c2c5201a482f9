//! [`Recipe`]: which rows a decomposition into heads and neurons has, formed or projected without being formed.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::interventions;
use super::labelled::LabelledTensor;
use super::passage::{Passage, Written};
use super::row_form::{Directions, RowForm};
use super::stack::{Contributions, ResidualStack};
use super::window::{View, WindowOptions};
use crate::cache::ActivationCache;
use crate::component::{Component, Reach, Sublayer, Target};
use crate::model::linear::Linear;
use crate::tensor::slice::Slice;
use crate::{hook, Result};

/// A decomposition of the stream at a target into heads, neurons and what else there is.
#[derive(Debug)]
pub(crate) enum Recipe {
    /// Heads, and what they leave out of the stream.
    Heads { incl_remainder: bool },
    /// Neurons, and what they leave out of the stream.
    Neurons { neurons: Slice, incl_remainder: bool },
    /// Heads, neurons (or whole MLPs), embeddings and biases.
    Full { expand_neurons: bool },
    /// Features of dictionaries, and what sublayers without one write.
    Features,
}

/// Rows with what they are: `[row, batch, pos, last]`.
pub(crate) struct RowValues {
    pub(crate) components: Vec<Component>,
    pub(crate) values: Tensor,
}

impl RowValues {
    /// Adds `value`, `[1, batch, pos, last]`, to the row of interventions, which is the last one.
    pub(crate) fn intervene(&mut self, value: &Tensor) -> Result<()> {
        let last = self.components.len() as i64 - 1;
        if self.components.last() == Some(&Component::Intervention) {
            let row = self.values.f_narrow(0, last, 1)?.f_add(value)?;
            self.values = Tensor::f_cat(&[self.values.f_narrow(0, 0, last)?, row], 0)?;
            return Ok(());
        }
        self.components.push(Component::Intervention);
        self.values = Tensor::f_cat(&[&self.values, value], 0)?;
        Ok(())
    }

    /// The sum of the rows: `[1, batch, pos, last]`.
    fn sum(&self) -> Result<Tensor> {
        Ok(self.values.f_sum_dim_intlist([0i64].as_slice(), true, None)?)
    }
}

impl Recipe {
    /// Whether the rows add up to the stream.
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Recipe::Heads { incl_remainder } | Recipe::Neurons { incl_remainder, .. } => *incl_remainder,
            Recipe::Full { .. } | Recipe::Features => true,
        }
    }

    /// The rows, with what they leave out of the stream where that is asked for, and with a row for interventions where these break the
    /// sum.
    pub(crate) fn rows(&self, view: &View, reach: &Reach, form: &RowForm) -> Result<RowValues> {
        let mut components = Vec::new();
        let mut rows = Vec::new();
        let passage = Passage::of(view, reach)?;
        let has_heads = !matches!(self, Recipe::Neurons { .. } | Recipe::Features);
        let attentions = reach.sublayers(view.model().config()).filter(|(_, sublayer)| sublayer.is_attention());
        for (layer, sublayer) in attentions.filter(|_| has_heads) {
            components.extend(view.head_components(layer, sublayer));
            let written = Written::by(layer, sublayer);
            rows.push(passage.rows(written, form, |form| view.head_rows(layer, sublayer, form))?);
        }
        let neurons = match self {
            Recipe::Neurons { neurons, .. } => Some(neurons),
            Recipe::Full { expand_neurons: true } => Some(&Slice::All),
            Recipe::Heads { .. } | Recipe::Full { expand_neurons: false } | Recipe::Features => None,
        };
        for layer in 0..neurons.map_or(0, |_| reach.mlp_layers) {
            if let Some(neurons) = neurons {
                components.extend(view.neuron_components(layer, neurons)?);
                let written = Written::by(layer, Sublayer::Mlp);
                rows.push(passage.rows(written, form, |form| view.neuron_rows(layer, neurons, form))?);
            }
        }
        if let Recipe::Features = self {
            let features = view.feature_rows(reach, &passage, form)?;
            components.extend(features.components);
            rows.extend(features.rows);
        }
        if let Recipe::Full { expand_neurons } = self {
            let mlps = (0..if *expand_neurons { 0 } else { reach.mlp_layers })
                .map(|layer| (Component::MlpOut(layer), hook::mlp_out(layer), Written::by(layer, Sublayer::Mlp)));
            let ple = (0..reach.layers_with_embeddings(view.model().config()))
                .map(|layer| (Component::PleOut(layer), hook::ple_out(layer), Written::by_ple(layer)));
            let embeddings = view.cache.embeddings().into_iter();
            let embeddings = embeddings.map(|(component, point)| (component, point, Written::FIRST));
            for (component, point, written) in mlps.chain(ple).chain(embeddings) {
                components.push(component);
                let row = view.get(point)?.f_unsqueeze(0)?;
                rows.push(passage.rows(written, form, |form| form.rows(&row))?);
            }
            components.push(Component::Bias);
            rows.push(form.rows(&view.bias_row(reach, &passage, *expand_neurons)?)?);
        }
        if rows.is_empty() {
            // No layer has written yet.
            let nothing = form.rows(&view.stream(reach)?)?.f_narrow(0, 0, 0)?;
            rows.push(nothing);
        }
        let mut rows = RowValues { components, values: Tensor::f_cat(&rows, 0)? };
        match self {
            Recipe::Heads { incl_remainder: true } | Recipe::Neurons { incl_remainder: true, .. } => {
                let remainder = form.rows(&view.stream(reach)?)?.f_sub(&rows.sum()?)?;
                rows.components.push(Component::Remainder);
                rows.values = Tensor::f_cat(&[&rows.values, &remainder], 0)?;
            }
            Recipe::Full { expand_neurons } => {
                if interventions::breaks(interventions::Parts { heads: true, neurons: *expand_neurons }, view, reach)? {
                    let missing = form.rows(&view.stream(reach)?)?.f_sub(&rows.sum()?)?;
                    rows.intervene(&missing)?;
                }
            }
            Recipe::Features => {
                // What hooks changed in the stream, and what norms of the stream add.
                let missing = form.rows(&view.stream(reach)?)?.f_sub(&rows.sum()?)?;
                let parts = interventions::Parts { heads: false, neurons: false };
                if interventions::breaks(parts, view, reach)? || passage.adds() {
                    rows.intervene(&missing)?;
                }
            }
            Recipe::Heads { .. } | Recipe::Neurons { .. } => {}
        }
        Ok(rows)
    }
}

/// What [`ActivationCache::decompose`] is asked beside its recipe.
pub(crate) struct StackOptions {
    pub(crate) target: Target,
    pub(crate) apply_ln: bool,
    pub(crate) window: WindowOptions,
    pub(crate) project: Option<Tensor>,
}

impl ActivationCache {
    /// Forms or projects rows, with the target's norm applied or not.
    pub(crate) fn decompose(&self, recipe: &Recipe, options: StackOptions) -> Result<ResidualStack> {
        let StackOptions { target, apply_ln, window, project } = options;
        let reach = target.reach(self.model().config())?;
        let window = window.of(self)?;
        let view = View::new(self, &window);
        let kind = Contributions::of_stream(reach.target, recipe.is_complete());
        let Some(directions) = project else {
            let rows = recipe.rows(&view, &reach, &RowForm::Whole)?;
            let stack = LabelledTensor::new(rows, self.clone(), window, true, kind);
            return if apply_ln { stack.apply_ln() } else { Ok(stack) };
        };
        let u = Directions::checked(&directions, self.model())?;
        let onto = match apply_ln {
            false => Directions::plain(&u),
            true => Directions::through(&u, FrozenNorm::of_run(self.model().norm_before(reach.target)?, &view)?)?,
        };
        let mut rows = recipe.rows(&view, &reach, &RowForm::Projected(&onto))?;
        if apply_ln
            && recipe.is_complete()
            && let Some(reading) = interventions::changed_reading(&view, reach.target)?
        {
            let linear = onto.project(&view.stream(&reach)?)?;
            rows.intervene(&Directions::plain(&u).project(&reading)?.f_sub(&linear)?)?;
        }
        let has_last_axis = directions.dim() == 2;
        Ok(LabelledTensor::new(rows, self.clone(), window, has_last_axis, kind.projected(directions, apply_ln)))
    }
}

impl View<'_> {
    /// What biases have added to the stream before the target, whatever the input: `[1, batch, pos, d_model]`.
    ///
    /// `Σ b_O`, those of cross-attention included, and `Σ b_out` with `mlps`, through the norms after the sublayers at their frozen scale (the norms' own biases
    /// included), and what the norms of the stream itself add. TransformerLens' `accumulated_bias`, but for those norms.
    fn bias_row(&self, reach: &Reach, passage: &Passage, mlps: bool) -> Result<Tensor> {
        let nothing = self.get(hook::embed())?.f_zeros_like()?; // [batch, pos, d_embed]
        let ([batch, pos], kind) = ([nothing.size()[0], nothing.size()[1]], nothing.f_kind()?);
        let size = [batch, pos, self.model().config().d_model as i64];
        let wide = |bias: &Tensor| -> Result<Tensor> { Ok(bias.f_to_kind(kind)?.f_expand(size, false)?) };
        let biases = |layer: usize, sublayer: Sublayer| -> Result<Option<Tensor>> {
            let of_writer = |writer: &Linear| writer.bias.as_deref().map(Tensor::shallow_clone);
            let bias = match sublayer {
                Sublayer::Attention => of_writer(self.model().head_writer(layer)?),
                Sublayer::CrossAttention => of_writer(self.model().cross_writer(layer)?),
                Sublayer::Mlp if !mlps => return Ok(None),
                Sublayer::Mlp => self.neuron_bias(layer)?,
            };
            let after = FrozenNorm::of_run(self.model().norm_after(layer, sublayer)?, self)?;
            let bias = bias.map(|bias| after.apply(&wide(&bias)?)).transpose()?;
            let of_norm = after.b.as_ref().map(wide).transpose()?;
            match (bias, of_norm) {
                (Some(bias), Some(of_norm)) => Ok(Some(bias.f_add(&of_norm)?)),
                (bias, of_norm) => Ok(bias.or(of_norm)),
            }
        };
        Ok(passage.accumulate(reach.sublayers(self.model().config()), nothing, biases)?.f_unsqueeze(0)?)
    }
}
