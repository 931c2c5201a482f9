//! [`Rows`]: a decomposition that can be formed, or projected without being formed.

use std::sync::Arc;

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::heads::HeadRows;
use super::neurons::NeuronRows;
use super::project::Directions;
use super::stack::{ResidualStack, SharedNorm};
use super::window::Window;
use crate::cache::ActivationCache;
use crate::component::{Component, Reach};
use crate::hook;
use crate::model::block::MlpOrExperts;
use crate::{Error, Result};

/// A decomposition of the stream at a target, as a recipe: it can be formed, or projected without being formed.
pub(crate) trait Rows {
    /// What each row is.
    fn components(&self, cache: &ActivationCache, reach: &Reach) -> Result<Vec<Component>>;
    /// `[row, batch, pos, d_model]`
    fn form(&self, cache: &ActivationCache, reach: &Reach, window: &Window) -> Result<Tensor>;
    /// `[row, batch, pos, k]`
    fn project(&self, cache: &ActivationCache, reach: &Reach, window: &Window, onto: &Directions) -> Result<Tensor>;
}

impl ActivationCache {
    /// Forms or projects rows, with the target's norm applied or not.
    pub(crate) fn stack_rows(
        &self,
        rows: &dyn Rows,
        reach: &Reach,
        window: &Window,
        apply_ln: bool,
        project: Option<Tensor>,
    ) -> Result<ResidualStack> {
        let components = rows.components(self, reach)?;
        let Some(directions) = project else {
            let full = rows.form(self, reach, window)?;
            let stack = ResidualStack::new(self.parts(full, components, reach, window));
            return if apply_ln { stack.apply_ln() } else { Ok(stack) };
        };
        let u = self.directions(&directions)?;
        let onto = match apply_ln {
            false => Directions::plain(u),
            true => Directions::through(&u, self.frozen_norm(reach, window))?,
        };
        let full = rows.project(self, reach, window, &onto)?;
        let parts = self.parts(full, components, reach, window);
        Ok(ResidualStack::projected(parts, apply_ln, directions.dim() == 2))
    }

    /// The target's norm, shared.
    pub(crate) fn frozen_norm(&self, reach: &Reach, window: &Window) -> SharedNorm {
        let norm = FrozenNorm::at(reach, self, window).map_err(|error| error.to_string());
        Arc::new(norm)
    }

    /// `[d_model]` or `[d_model, k]` as `[1, 1, d_model, k]`.
    pub(crate) fn directions(&self, directions: &Tensor) -> Result<Tensor> {
        let d_model = self.model().config().d_model as i64;
        match directions.size().as_slice() {
            [d] if *d == d_model => Ok(directions.f_view([1, 1, d_model, 1])?),
            [d, _] if *d == d_model => Ok(directions.f_unsqueeze(0)?.f_unsqueeze(0)?),
            found => Err(Error::Shape {
                what: "the directions to project onto".into(),
                found: found.to_vec(),
                expected: format!("[{d_model}] or [{d_model}, k]"),
            }),
        }
    }

    /// The stream at the target: `[1, batch, pos, d_model]`.
    pub(crate) fn stream(&self, reach: &Reach, window: &Window) -> Result<Tensor> {
        Ok(window.of(self, reach.stream(self.model().config()))?.f_unsqueeze(0)?)
    }

    /// What biases have added to the stream before the target, whatever the input: `[1, batch, pos, d_model]`.
    ///
    /// `Σ b_O`, and `Σ b_out` with `mlps`, through the norms after the sublayers at their frozen scale (the norms' own biases
    /// included). TransformerLens' `accumulated_bias`, but for those norms.
    pub(crate) fn accumulated_bias_rows(&self, reach: &Reach, window: &Window, mlps: bool) -> Result<Tensor> {
        let mut total = window.of(self, hook::embed())?.f_zeros_like()?; // [batch, pos, d_model]
        let size = total.size();
        let wide = |bias: &Tensor| -> Result<Tensor> { Ok(bias.f_to_kind(total.f_kind()?)?.f_expand(&size, false)?) };
        let mut biases = Vec::new();
        let blocks = &self.model().weights().blocks;
        for (layer, block) in blocks.iter().enumerate().take(reach.attn_layers) {
            let after = FrozenNorm::after_attn(layer, self, window)?;
            if let Some(bias) = &block.attn.o.bias {
                biases.push(after.apply(&wide(bias)?)?);
            }
            if let Some(bias) = &after.b {
                biases.push(wide(bias)?);
            }
        }
        for (layer, block) in blocks.iter().enumerate().take(if mlps { reach.mlp_layers } else { 0 }) {
            let after = FrozenNorm::after_mlp(layer, self, window)?;
            match &block.mlp {
                Some(MlpOrExperts::Mlp(mlp)) => {
                    if let Some(bias) = &mlp.w_out.bias {
                        biases.push(after.apply(&wide(bias)?)?);
                    }
                }
                Some(MlpOrExperts::Experts(mixture)) if mixture.experts.iter().any(|e| e.w_out.bias.is_some()) => {
                    let routed = self.routed(layer, mixture, window)?; // [batch, pos, expert]
                    let each = mixture.experts.iter().map(|expert| match &expert.w_out.bias {
                        Some(bias) => Ok(bias.f_to_kind(routed.f_kind()?)?),
                        None => Ok(Tensor::f_zeros([size[2]], (routed.f_kind()?, routed.device()))?),
                    });
                    let each = Tensor::f_stack(&each.collect::<Result<Vec<_>>>()?, 0)?; // [expert, d_model]
                    biases.push(after.apply(&routed.f_matmul(&each)?)?);
                }
                _ => {}
            }
            if let Some(bias) = &after.b {
                biases.push(wide(bias)?);
            }
        }
        for bias in biases {
            total = total.f_add(&bias)?;
        }
        Ok(total.f_unsqueeze(0)?)
    }
}

/// What the rows leave out of the stream, as one more row.
fn with_remainder(rows: Vec<Tensor>, stream: Tensor, wanted: bool) -> Result<Tensor> {
    if !wanted {
        return match rows.is_empty() {
            true => Ok(stream.f_narrow(0, 0, 0)?),
            false => Ok(Tensor::f_cat(&rows, 0)?),
        };
    }
    let mut remainder = stream;
    for layer in &rows {
        remainder = remainder.f_sub(&layer.f_sum_dim_intlist([0i64].as_slice(), true, None)?)?;
    }
    let mut rows = rows;
    rows.push(remainder);
    Ok(Tensor::f_cat(&rows, 0)?)
}

impl Rows for HeadRows {
    fn components(&self, cache: &ActivationCache, reach: &Reach) -> Result<Vec<Component>> {
        let mut components = cache.head_components(reach);
        components.extend(self.incl_remainder.then_some(Component::Remainder));
        Ok(components)
    }

    fn form(&self, cache: &ActivationCache, reach: &Reach, window: &Window) -> Result<Tensor> {
        let rows = (0..reach.attn_layers).map(|layer| cache.head_rows(layer, window)).collect::<Result<_>>()?;
        with_remainder(rows, cache.stream(reach, window)?, self.incl_remainder)
    }

    fn project(&self, cache: &ActivationCache, reach: &Reach, window: &Window, onto: &Directions) -> Result<Tensor> {
        let rows = (0..reach.attn_layers).map(|layer| cache.projected_heads(layer, window, onto));
        with_remainder(rows.collect::<Result<_>>()?, onto.rows(&cache.stream(reach, window)?)?, self.incl_remainder)
    }
}

impl Rows for NeuronRows {
    fn components(&self, cache: &ActivationCache, reach: &Reach) -> Result<Vec<Component>> {
        let mut components = cache.neuron_components(reach, &self.neurons.keeping_axis())?;
        components.extend(self.incl_remainder.then_some(Component::Remainder));
        Ok(components)
    }

    fn form(&self, cache: &ActivationCache, reach: &Reach, window: &Window) -> Result<Tensor> {
        let rows = (0..reach.mlp_layers).map(|layer| cache.neuron_rows(layer, window, &self.neurons));
        with_remainder(rows.collect::<Result<_>>()?, cache.stream(reach, window)?, self.incl_remainder)
    }

    fn project(&self, cache: &ActivationCache, reach: &Reach, window: &Window, onto: &Directions) -> Result<Tensor> {
        let rows = (0..reach.mlp_layers).map(|layer| cache.projected_neurons(layer, window, &self.neurons, onto));
        with_remainder(rows.collect::<Result<_>>()?, onto.rows(&cache.stream(reach, window)?)?, self.incl_remainder)
    }
}
