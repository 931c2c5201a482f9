//! [`FrozenAttention`]: a layer's attention at its patterns, gates and scales in a run, where it is linear.

use tch::Tensor;

use crate::analysis::frozen_norm::FrozenNorm;
use crate::analysis::window::View;
use crate::hook::{self, HookPoint};
use crate::model::attention::Attention;
use crate::model::head_router::ChosenHeads;
use crate::model::norm::Norm;
use crate::model::placed_norm::PlacedNorm;
use crate::tensor::precision::widened;
use crate::tensor::scalar::{arange, Scalar};
use crate::Result;

/// A layer's attention as a linear map from what its values read to what `W_O` gives, both ways: forwards, with what biases add, and
/// backwards, for gradients.
///
/// `z[head] = Σ mixing[head, query, key] · v[value head of head, key]`: all that is frozen and multiplies whole rows of values (the pattern,
/// the share of sinks, the scale of a differential norm) is in `mixing`.
pub(in crate::graphs) struct FrozenAttention<'m> {
    attn: &'m Attention,
    /// `[head, query, key]`
    mixing: Tensor,
    /// Whether the keys are an encoder's positions.
    across: bool,
    /// The value head that each head reads, where heads share some: `[head]`.
    value_heads: Option<Tensor>,
    values: Values,
    /// Where values pass a norm, its scale of each head: `[1, pos, kv_head, 1]`.
    v_scale: Option<Tensor>,
    /// Whether that norm centres.
    centers: bool,
    clip: Option<Clip>,
    z_norm: Option<FrozenNorm>,
    /// `[1, pos, head, d_value or 1]`
    gates: Option<Tensor>,
    chosen: Option<ChosenHeads>,
    /// `W_O`: `[d_model, head · d_value]`.
    out: Tensor,
    n_kv_heads: i64,
    d_value: i64,
    /// What `W_O` reads where values read nothing: biases, mixed. `[1, pos, head, d_value]`.
    pub(in crate::graphs) z_of_nothing: Tensor,
}

/// How values are made of what they read.
enum Values {
    /// `[kv_head · d_value, d_model]`
    Direct { weight: Tensor, bias: Option<Tensor> },
    /// Through a latent with a norm: `[rank, d_model]`, then `[kv_head · d_value, rank]`.
    Latent { down: Tensor, bias: Option<Tensor>, norm: FrozenNorm, up: Tensor },
}

/// Where values were clipped they are constants.
struct Clip {
    /// One where a value was within: `[1, pos, kv_head, d_value]`.
    within: Tensor,
    /// The values that were not, and zeros.
    clipped: Tensor,
}

impl<'m> FrozenAttention<'m> {
    /// The points of a run that it is made of.
    pub(super) fn points(attn: &Attention, layer: usize) -> Vec<HookPoint> {
        if attn.kv.is_some() {
            return vec![hook::cross_pattern(layer), hook::cross_v(layer)];
        }
        let mut points = vec![hook::pattern(layer)];
        if attn.shares.is_none() {
            points.push(hook::v(layer));
        }
        if attn.sinks_after_pattern && attn.sinks.is_some() {
            points.push(hook::attn_scores(layer));
        }
        if attn.v_norm.is_some() && attn.shares.is_none() {
            points.push(hook::v_norm_scale(layer));
        }
        if attn.z_norm.is_some() {
            points.push(hook::z_norm_scale(layer));
        }
        if attn.gate.is_some() {
            points.push(hook::head_gate(layer));
        }
        if attn.router.is_some() {
            points.extend([hook::head_weights(layer), hook::head_indices(layer)]);
        }
        points
    }

    /// An attention in a run of one prompt, and the one that makes its values; `read` is what these read, `[1, pos, d_model]`, and `bias` what
    /// the norm before them adds.
    pub(super) fn of_run(
        (attn, of_values): (&'m Attention, &'m Attention),
        view: &View,
        read: &Tensor,
        bias: &Tensor,
    ) -> Result<Self> {
        let (layer, across) = (attn.layer, attn.kv.is_some());
        let (values_at, pattern_at) = match across {
            true => (hook::cross_v(layer), hook::cross_pattern(layer)),
            false => (hook::v(of_values.layer), hook::pattern(layer)),
        };
        let v = widened(view.cache.get(values_at)?)?; // [1, pos, kv_head, d_value]
        let (n_kv_heads, d_value) = (v.size()[2], v.size()[3]);
        let norm = of_values.v_norm.as_ref();
        let v_scale = norm.map(|_| view.get(hook::v_norm_scale(of_values.layer))).transpose()?;
        let centers = norm.is_some_and(|norm| norm.kind.centers());
        let v = match &v_scale {
            Some(scale) => centered(&v, centers)?.f_div(scale)?,
            None => v,
        };
        let clip = of_values.clip.map(|clip| Clip::of(&v, clip)).transpose()?;
        let v = match of_values.clip {
            Some(clip) => v.between(-clip, clip)?,
            None => v,
        };
        let mut pattern = widened(view.cache.get(pattern_at)?)?.f_squeeze_dim(0)?; // [head, query, key]
        let n_heads = pattern.size()[0];
        if let (true, Some(sinks)) = (attn.sinks_after_pattern, &attn.sinks) {
            let scores = widened(view.cache.get(hook::attn_scores(layer))?)?.f_squeeze_dim(0)?;
            let positions = scores.f_logsumexp([-1i64].as_slice(), true)?; // [head, query, 1]
            let sinks = widened(sinks)?.f_view([-1, 1, 1])?;
            pattern = pattern.f_mul(&positions.f_sub(&sinks)?.f_sigmoid()?)?;
        }
        let heads = 0..n_heads;
        let group = (n_heads / n_kv_heads).max(1);
        let (mixing, value_heads): (Tensor, Vec<i64>) = match (&attn.differential, &attn.router) {
            (Some(differential), _) => {
                let by_head = differential.values(&v.f_transpose(1, 2)?)?.f_squeeze_dim(0)?; // [kv_head, key, 2 d_head]
                let by_head = by_head.f_repeat_interleave_self_int(group, 0, None)?;
                let joint = differential.joint_pattern(&pattern, &by_head)?; // [pair, query, key]
                let mixing = joint.f_repeat_interleave_self_int(2, 0, None)?;
                // The halves of a pair's values are those of two value heads.
                let value_head = |head: i64| (head / 2) / group + (head % 2) * (n_kv_heads / 2);
                (mixing, heads.map(value_head).collect())
            }
            (None, Some(_)) => (pattern, heads.map(|head| head % n_kv_heads).collect()),
            (None, None) => (pattern, heads.map(|head| head / group).collect()),
        };
        let is_each = value_heads.iter().copied().eq(0..n_kv_heads);
        let value_heads = match is_each {
            true => None,
            false => Some(Tensor::f_from_slice(&value_heads)?.f_to_device(mixing.device())?),
        };
        let z_norm = match &attn.z_norm {
            Some(norm) => {
                let points = (hook::z_norm_scale(layer), hook::z_norm_normalized(layer));
                Some(FrozenNorm::of_run(Some(PlacedNorm { norm, points }), view)?)
            }
            None => None,
        };
        let gates = attn.gate.as_ref().map(|_| view.get(hook::head_gate(layer))).transpose()?;
        let out = widened(&attn.o.weight)?;
        let mut frozen = FrozenAttention {
            attn,
            mixing,
            value_heads,
            across,
            values: Values::of(of_values, read)?,
            v_scale,
            centers,
            clip,
            z_norm,
            gates,
            chosen: view.chosen_heads(layer)?,
            out,
            n_kv_heads,
            d_value,
            z_of_nothing: Tensor::new(),
        };
        frozen.z_of_nothing = frozen.z(bias)?;
        Ok(frozen)
    }

    /// What `W_O` reads where values read `x`, `[1, pos, d_model]`, biases included: `[1, pos, head, d_value]`.
    pub(in crate::graphs) fn z(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let v = self.values.forward(x)?.f_view([1, size[1], self.n_kv_heads, self.d_value])?;
        let v = match &self.v_scale {
            Some(scale) => centered(&v, self.centers)?.f_div(scale)?,
            None => v,
        };
        let v = match &self.clip {
            Some(Clip { within, clipped }) => v.f_mul(within)?.f_add(clipped)?,
            None => v,
        };
        let v = match &self.value_heads {
            Some(heads) => v.f_index_select(2, heads)?,
            None => v,
        };
        let mixed = self.mixing.f_matmul(&v.f_squeeze_dim(0)?.f_transpose(0, 1)?)?; // [head, query, d_value]
        let mut z = mixed.f_transpose(0, 1)?.f_unsqueeze(0)?; // [1, pos, head, d_value]
        if let Some(norm) = &self.z_norm {
            let shape = z.size();
            z = norm.with_bias(norm.apply(&z.f_reshape([1, shape[1], -1])?)?)?.f_view(shape.as_slice())?;
        }
        Ok(match &self.gates {
            Some(gates) => z.f_mul(gates)?,
            None => z,
        })
    }

    /// What the heads write, with the bias of `W_O`: `[1, pos, head, d_value]` to `[1, pos, d_model]`.
    pub(in crate::graphs) fn output(&self, z: &Tensor) -> Result<Tensor> {
        let size = z.size();
        let flat = match (&self.attn.router, &self.chosen) {
            (Some(router), Some(chosen)) => router.spread(z, chosen)?.f_reshape([size[0], size[1], -1])?,
            _ => z.f_reshape([size[0], size[1], -1])?,
        };
        let bias = self.attn.o.bias.as_deref().map(widened).transpose()?;
        Ok(flat.f_linear(&self.out, bias.as_ref())?)
    }

    /// What each head writes, before any norm after attention: `[pos, head, d_model]`.
    pub(in crate::graphs) fn results(&self, z: &Tensor) -> Result<Tensor> {
        let results = self.attn.result(&z.f_to_kind(self.attn.o.weight.f_kind()?)?, self.chosen.as_ref())?;
        widened(&results.f_squeeze_dim(0)?)
    }

    /// Gradients at what `W_O` gives, `[row, pos, d_model]`, as those at what it reads: `[row, pos, head, d_value]`.
    pub(in crate::graphs) fn pull_to_z(&self, gradients: &Tensor) -> Result<Tensor> {
        let size = gradients.size();
        let flat = gradients.f_matmul(&self.out)?; // [row, pos, head · d_value]
        match (&self.attn.router, &self.chosen) {
            (Some(router), Some(chosen)) => router.pull(&flat, chosen, self.d_value),
            _ => Ok(flat.f_view([size[0], size[1], -1, self.d_value])?),
        }
    }

    /// Gradients at what `W_O` reads, `[row, pos, head, d_value]` from the first position on, as those at what values read:
    /// `[row, pos, d_model]`; of cross-attention, at all positions of the encoder.
    pub(in crate::graphs) fn pull_from_z(&self, gradients: Tensor) -> Result<Tensor> {
        let size = gradients.size();
        let [rows, pos, heads, width] = [size[0], size[1], size[2], size[3]];
        let mut g = gradients;
        if let Some(gates) = &self.gates {
            g = g.f_mul(&gates.f_narrow(1, 0, pos)?)?;
        }
        if let Some(norm) = &self.z_norm {
            g = norm.pull(&g.f_reshape([rows, pos, heads * width])?, true)?.f_view(size.as_slice())?;
        }
        let keys = if self.across { self.mixing.size()[2] } else { pos };
        let mixing = self.mixing.f_narrow(1, 0, pos)?.f_narrow(2, 0, keys)?.f_transpose(1, 2)?; // [head, key, query]
        let g = g.f_permute([2, 1, 0, 3])?.f_reshape([heads, pos, rows * width])?; // [head, query, row · d_value]
        let mut g = mixing.f_bmm(&g)?; // [head, key, row · d_value]
        if let Some(value_heads) = &self.value_heads {
            let sums = Tensor::f_zeros([self.n_kv_heads, keys, rows * width], (g.f_kind()?, g.device()))?;
            g = sums.f_index_add(0, value_heads, &g)?;
        }
        let g = g.f_view([self.n_kv_heads, keys, rows, width])?.f_permute([2, 1, 0, 3])?; // [row, key, kv_head, d_value]
        let g = match &self.clip {
            Some(clip) => g.f_mul(&clip.within.f_narrow(1, 0, keys)?)?,
            None => g,
        };
        let g = match &self.v_scale {
            Some(scale) => centered(&g.f_div(&scale.f_narrow(1, 0, keys)?)?, self.centers)?,
            None => g,
        };
        self.values.pull(&g.f_reshape([rows, keys, self.n_kv_heads * width])?)
    }

    /// Gradients at what one head writes each, `[row, d_model]` at positions `[row]`, as those at what `W_O` reads, of the first `pos`
    /// positions: `[row, pos, head, d_value]`.
    pub(in crate::graphs) fn pull_heads(
        &self,
        at: &Tensor,
        positions: &Tensor,
        heads: &Tensor,
        pos: i64,
    ) -> Result<Tensor> {
        let rows = at.size()[0];
        let options = (at.f_kind()?, at.device());
        let row = arange(0..rows, at.device())?;
        let full = Tensor::f_zeros([rows, pos, at.size()[1]], options)?;
        let full = full.f_index_put(&[Some(&row), Some(positions)], at, false)?;
        let z = self.pull_to_z(&full)?;
        let mask = Tensor::f_zeros([rows, z.size()[2]], options)?;
        let mask = mask.f_index_put(&[Some(&row), Some(heads)], &Tensor::f_ones([rows], options)?, false)?;
        Ok(z.f_mul(&mask.f_view([rows, 1, -1, 1])?)?)
    }
}

impl Values {
    fn of(attn: &Attention, read: &Tensor) -> Result<Self> {
        if let Some(latent) = &attn.latent {
            let (down, norm, up) = latent.value_maps(&attn.qkv)?;
            let (weight, bias) = (widened(&down.weight)?, down.bias.as_deref().map(widened).transpose()?);
            let at = read.f_linear(&weight, bias.as_ref())?; // [1, pos, rank]
            let norm = FrozenNorm::of_stream(Some(placed(norm)), &at)?;
            return Ok(Values::Latent { down: weight, bias, norm, up: widened(&up)? });
        }
        let made = attn.kv.as_ref().unwrap_or(&attn.qkv);
        let n = attn.n_kv_heads * attn.d_value;
        let linear = made.narrow(made.weight.size()[0] - n, n)?;
        Ok(Values::Direct { weight: widened(&linear.weight)?, bias: linear.bias.as_deref().map(widened).transpose()? })
    }

    /// `[…, d_model]` to `[…, kv_head · d_value]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Values::Direct { weight, bias } => Ok(x.f_linear(weight, bias.as_ref())?),
            Values::Latent { down, bias, norm, up } => {
                let latent = norm.with_bias(norm.apply(&x.f_linear(down, bias.as_ref())?)?)?;
                Ok(latent.f_linear(up, None::<&Tensor>)?)
            }
        }
    }

    /// `[row, pos, kv_head · d_value]` to `[row, pos, d_model]`.
    fn pull(&self, gradients: &Tensor) -> Result<Tensor> {
        match self {
            Values::Direct { weight, .. } => Ok(gradients.f_matmul(weight)?),
            Values::Latent { down, norm, up, .. } => Ok(norm.pull(&gradients.f_matmul(up)?, true)?.f_matmul(down)?),
        }
    }
}

impl Clip {
    fn of(v: &Tensor, clip: f64) -> Result<Self> {
        let kind = v.f_kind()?;
        let outside = v.f_abs()?.gt_number(clip)?;
        let within = outside.f_logical_not()?.f_to_kind(kind)?;
        let clipped = v.between(-clip, clip)?.f_mul(&outside.f_to_kind(kind)?)?;
        Ok(Clip { within, clipped })
    }
}

/// Entries less their mean, in a norm that centres.
fn centered(x: &Tensor, centers: bool) -> Result<Tensor> {
    Ok(match centers {
        true => x.f_sub(&x.f_mean_dim([-1i64].as_slice(), true, None)?)?,
        false => x.shallow_clone(),
    })
}

/// A norm that has no hook points of its own.
fn placed(norm: &Norm) -> PlacedNorm<'_> {
    PlacedNorm { norm, points: (hook::unembed_in(), hook::unembed_in()) }
}
