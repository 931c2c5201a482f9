//! [`Attention`]: queries, keys and values, the pattern they make, and what it mixes into the stream.

use std::ops::Range;

use tch::Tensor;

use super::attention_input::AttentionInput;
use super::context::{Context, FusedMask, KeySource, AT_ONCE};
use super::differential::Differential;
use super::head_router::{self, ChosenHeads, HeadRouter};
use super::latent::{per_head, Latent};
use super::linear::Linear;
use super::norm::{constant_if, Norm, NormPoints};
use super::parameters::module;
use super::part::Part;
use crate::config::{GateFunction, PositionalEmbedding, QkNorm};
use crate::hook::{self, HookPoint, Site};
use crate::run::{Flow, Tap};
use crate::tensor::scalar::{full, Scalar};
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Result};

/// A layer's attention (Vaswani et al. 2017), with as many keys and values as queries or fewer
/// (Ainslie et al. 2023, "GQA").
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    /// Queries, then keys, then values, in one product: `d_model` to `(n_heads + n_kv_heads) · d_head + n_kv_heads · d_value`. Where
    /// there are latents, what they are made of.
    pub(crate) qkv: Linear,
    /// Of cross-attention, the keys, then values, of an encoder's output, in one product; `qkv` are its queries alone.
    pub(crate) kv: Option<Linear>,
    pub(crate) latent: Option<Latent>,
    /// Chooses the heads of each token from those of several experts.
    pub(crate) router: Option<HeadRouter>,
    /// What the gates of the heads' output are made of.
    pub(crate) gate: Option<Linear>,
    /// `n_heads · d_value` to `d_model`.
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Norm>,
    pub(crate) k_norm: Option<Norm>,
    /// The score of looking at nothing: `[head]`.
    pub(crate) sinks: Option<SharedTensor>,
    /// The table of relative biases of this layer and, unless they have their own, of those after it: `[bucket, head]`.
    pub(crate) relative_bias: Option<SharedTensor>,
    /// What goes to the sinks is taken from the mixed values, and not from the pattern.
    pub(crate) sinks_after_pattern: bool,
    pub(crate) layer: usize,
    pub(crate) n_heads: i64,
    pub(crate) n_kv_heads: i64,
    pub(crate) d_head: i64,
    pub(crate) d_value: i64,
    /// The first of a head's dimensions that rotate.
    pub(crate) rotation_start: i64,
    /// What scores are divided by.
    pub(crate) scale: f64,
    pub(crate) soft_cap: Option<f64>,
    pub(crate) clip: Option<f64>,
    pub(crate) qk_norm: Option<QkNorm>,
    pub(crate) norms_rotated: bool,
    /// Of what all heads have mixed, between them and `o`.
    pub(crate) z_norm: Option<Norm>,
    pub(crate) differential: Option<Differential>,
    /// Whether the model has rotary positions, even where this layer does not rotate.
    pub(crate) rotary: bool,
    pub(crate) gate_function: Option<GateFunction>,
}

/// The parts of an attention that self-attention and cross-attention both have.
#[derive(Clone, Copy)]
pub(crate) struct AttentionParts {
    qkv: (Part, Part),
    o: (Part, Part),
}

impl AttentionParts {
    /// Of self-attention.
    pub(crate) const OWN: AttentionParts = AttentionParts { qkv: (Part::Qkv, Part::QkvB), o: (Part::O, Part::OB) };
    /// Of cross-attention.
    pub(crate) const CROSS: AttentionParts =
        AttentionParts { qkv: (Part::CrossQ, Part::CrossQB), o: (Part::CrossO, Part::CrossOB) };
}

module!(Attention, parts => AttentionParts, {
    qkv: parts.qkv,
    kv: (Part::CrossKv, Part::CrossKvB),
    latent: (),
    router: (),
    gate: (Part::HeadGate, Part::HeadGateB),
    q_norm: (Part::QNormW, Part::QNormB),
    k_norm: (Part::KNormW, Part::KNormB),
    sinks: Part::Sinks,
    relative_bias: Part::RelativeBias,
    differential: (),
    z_norm: (Part::ZNormW, Part::ZNormB),
    o: parts.o,
} plain {
    layer, n_heads, n_kv_heads, d_head, d_value, rotation_start, scale, soft_cap, clip, qk_norm, norms_rotated, rotary,
    sinks_after_pattern, gate_function,
});

impl Attention {
    /// What the configuration says, around weights.
    pub(crate) fn new(config: &Config, layer: usize, qkv: Linear, o: Linear) -> Self {
        Attention {
            qkv,
            kv: None,
            latent: None,
            router: None,
            gate: None,
            o,
            q_norm: None,
            k_norm: None,
            sinks: None,
            relative_bias: None,
            sinks_after_pattern: config.attention.sinks_after_pattern,
            layer,
            n_heads: config.heads(layer).query as i64,
            n_kv_heads: config.heads(layer).key_value as i64,
            d_head: config.d_head as i64,
            d_value: config.d_value() as i64,
            rotation_start: config.rotation_start() as i64,
            scale: config.score_divisor(layer),
            soft_cap: config.attn_scores_soft_cap(),
            clip: config.clip_qkv(),
            qk_norm: config.qk_norm(),
            norms_rotated: config.attention.qk_norm_after_rotation,
            z_norm: None,
            differential: None,
            rotary: config.positional_embedding_type() == PositionalEmbedding::Rotary,
            gate_function: config.attention.gate.map(|gate| gate.function),
        }
    }

    /// Cross-attention, around weights: its scores are those of self-attention, without positions.
    pub(crate) fn cross(config: &Config, layer: usize, q: Linear, kv: Linear, o: Linear) -> Self {
        let attention = Attention::new(config, layer, q, o);
        Attention { kv: Some(kv), rotary: false, qk_norm: None, gate_function: None, ..attention }
    }

    /// Whose keys and values the queries see.
    fn source(&self) -> KeySource {
        if self.kv.is_some() {
            KeySource::Encoder
        } else {
            KeySource::Stream
        }
    }

    /// The hook point of a site in this attention.
    #[inline]
    fn point(&self, site: Site) -> HookPoint {
        let site = if self.kv.is_some() { site.in_cross_attention() } else { site };
        HookPoint::in_layer(self.layer.into(), site)
    }

    /// The linear maps that read the stream, through the norm before them.
    pub(crate) fn readers_mut(&mut self) -> Vec<&mut Linear> {
        let router = self.router.iter_mut().map(|router| &mut router.router);
        std::iter::once(&mut self.qkv).chain(&mut self.gate).chain(router).collect()
    }

    /// What the heads add to the stream, before any norm after them: `[batch, pos, d_model]`.
    pub(crate) fn forward(&self, input: AttentionInput, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let gates = self.gates(&input)?; // [batch, pos, head, d_value or 1]
        let chosen = match (&self.router, &input) {
            (Some(router), AttentionInput::Shared(x)) => Some(router.route(x, layer, tap)?),
            _ => None,
        };
        let (q, k, v) = match (&self.kv, input) {
            (Some(kv), AttentionInput::Shared(x)) => self.project_across(kv, &x, context)?,
            (_, input) => self.project(input, chosen.as_ref())?,
        };
        let mut q = tap.at(self.point(Site::Q), q)?; // [batch, pos, head, d_head]
        let mut k = tap.at(self.point(Site::K), k)?; // [batch, pos, kv_head, d_head]
        let v = tap.at(self.point(Site::V), v)?; // [batch, pos, kv_head, d_value]
        if !self.norms_rotated {
            (q, k) = self.normalized(q, k, tap)?;
        }
        (q, k) = (self.clip(q)?, self.clip(k)?);
        let v = self.clip(v)?;
        if self.rotary {
            q = tap.at(hook::rot_q(layer), context.rotated(layer, q, self.rotation_start)?)?; // [batch, pos, head, d_head]
            k = tap.at(hook::rot_k(layer), context.rotated(layer, k, self.rotation_start)?)?;
            // [batch, pos, kv_head, d_head]
        }
        if self.norms_rotated {
            (q, k) = self.normalized(q, k, tap)?;
        }
        let q = if self.kv.is_some() { q } else { context.tempered(layer, q)? };
        let z = self.mix(&q, &k, &v, context, tap)?;
        let z = match &self.differential {
            Some(differential) => differential.difference(&z)?,
            None => z,
        };
        let z = match &self.z_norm {
            Some(norm) => of_all_heads(norm, z, (hook::z_norm_scale(layer), hook::z_norm_normalized(layer)), tap)?,
            None => z,
        };
        let z = match gates {
            Some(gates) => z.f_mul(&tap.at(hook::head_gate(layer), gates)?)?,
            None => z,
        };
        let z = tap.at(self.point(Site::Z), z)?; // [batch, pos, head, d_value]
        self.output(z, chosen.as_ref(), tap)
    }

    /// Queries, keys and values, as views of one product where they read the same stream.
    fn project(&self, input: AttentionInput, chosen: Option<&ChosenHeads>) -> Result<(Tensor, Tensor, Tensor)> {
        if let Some(latent) = &self.latent {
            return latent.project(&self.qkv, input);
        }
        let (n_q, n_k) = (self.n_heads * self.d_head, self.n_kv_heads * self.d_head);
        let heads = |x: Tensor, n: i64| -> Result<Tensor> {
            let size = x.size();
            Ok(x.f_view([size[0], size[1], n, -1])?)
        };
        match input {
            AttentionInput::Shared(x) => {
                let qkv = self.qkv.forward(&x)?; // [batch, pos, (n_heads + n_kv_heads) d_head + n_kv_heads d_value]
                if self.d_value != self.d_head {
                    let part = |start, n, width| -> Result<Tensor> { heads(qkv.f_narrow(2, start, n * width)?, n) };
                    return Ok((
                        part(0, self.n_heads, self.d_head)?,
                        part(n_q, self.n_kv_heads, self.d_head)?,
                        part(n_q + n_k, self.n_kv_heads, self.d_value)?,
                    ));
                }
                let size = qkv.size();
                let qkv = qkv.f_view([size[0], size[1], -1, self.d_head])?; // [batch, pos, head, d_head]
                let part = |start, n| qkv.f_narrow(2, start, n);
                if let (Some(router), Some(chosen)) = (&self.router, chosen) {
                    let all = qkv.size()[2] - 2 * self.n_kv_heads; // queries of all experts
                    let q = router.queries(&part(0, all)?, chosen)?;
                    return Ok((q, part(all, self.n_kv_heads)?, part(all + self.n_kv_heads, self.n_kv_heads)?));
                }
                Ok((
                    part(0, self.n_heads)?,
                    part(self.n_heads, self.n_kv_heads)?,
                    part(self.n_heads + self.n_kv_heads, self.n_kv_heads)?,
                ))
            }
            AttentionInput::Split { q, k, v } => {
                let one = |x: Tensor, start: i64, n: i64, width: i64| -> Result<Tensor> {
                    let linear = self.qkv.narrow(start, n * width)?;
                    if x.dim() == 3 {
                        return heads(linear.forward(&x)?, n);
                    }
                    let w = linear.weight.f_view([n, width, -1])?; // [head, width, d_model]
                    let y = Tensor::f_einsum("bphm,hem->bphe", &[&x, &w], None::<&[i64]>)?;
                    match &linear.bias {
                        Some(bias) => Ok(y.f_add(&bias.f_view([n, width])?)?),
                        None => Ok(y),
                    }
                };
                Ok((
                    one(q, 0, self.n_heads, self.d_head)?,
                    one(k, n_q, self.n_kv_heads, self.d_head)?,
                    one(v, n_q + n_k, self.n_kv_heads, self.d_value)?,
                ))
            }
        }
    }

    /// Queries of the stream, and keys and values of the encoder's output.
    fn project_across(&self, kv: &Linear, x: &Tensor, context: &Context) -> Result<(Tensor, Tensor, Tensor)> {
        let q = per_head(x, &self.qkv, self.n_heads)?; // [batch, pos, head, d_head]
        let kv = context.encoder_product(self.layer, kv)?; // [batch, encoder_pos, n_kv_heads (d_head + d_value)]
        let part = |start, width| -> Result<Tensor> {
            let part = kv.f_narrow(2, start, self.n_kv_heads * width)?;
            let size = part.size();
            Ok(part.f_view([size[0], size[1], self.n_kv_heads, width])?)
        };
        Ok((q, part(0, self.d_head)?, part(self.n_kv_heads * self.d_head, self.d_value)?))
    }

    /// The gates of what the heads mix, of what their queries read: `[batch, pos, head, d_value or 1]`.
    fn gates(&self, input: &AttentionInput) -> Result<Option<Tensor>> {
        let (Some(gate), Some(function)) = (&self.gate, self.gate_function) else { return Ok(None) };
        let x = match input {
            AttentionInput::Shared(x) | AttentionInput::Split { q: x, .. } => x,
        };
        let linear = || -> Result<Tensor> {
            // A bias is of heads, whatever the width.
            let gates = per_head(x, &Linear { weight: gate.weight.clone(), bias: None }, self.n_heads)?;
            match &gate.bias {
                Some(bias) => Ok(gates.f_add(&bias.f_view([self.n_heads, -1])?)?),
                None => Ok(gates),
            }
        };
        Ok(Some(match function {
            GateFunction::Sigmoid => linear()?.f_sigmoid()?,
            GateFunction::Softplus => linear()?.f_softplus()?,
            GateFunction::Router(experts) => head_router::gates(x, gate, experts)?,
        }))
    }

    fn clip(&self, x: Tensor) -> Result<Tensor> {
        Ok(match self.clip {
            Some(clip) => x.between(-clip, clip)?,
            None => x,
        })
    }

    /// Queries and keys through their norms, where they have any.
    fn normalized(&self, q: Tensor, k: Tensor, tap: &mut Tap) -> Flow<(Tensor, Tensor)> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else { return Ok((q, k)) };
        let layer = self.layer;
        let q = self.normalize(q_norm, q, (hook::q_norm_scale(layer), hook::q_norm_normalized(layer)), tap)?;
        let k = self.normalize(k_norm, k, (hook::k_norm_scale(layer), hook::k_norm_normalized(layer)), tap)?;
        Ok((q, k))
    }

    /// Normalises each head by itself, or all of a position's heads together.
    fn normalize(&self, norm: &Norm, x: Tensor, points: NormPoints, tap: &mut Tap) -> Flow<Tensor> {
        match self.qk_norm {
            Some(QkNorm::AllHeads(_)) => of_all_heads(norm, x, points, tap),
            _ => Ok(norm.forward(&x, points, tap)?.into_tensor()),
        }
    }

    /// Values mixed by the pattern: `[batch, pos, head, d_value]`.
    ///
    /// Scores and pattern are formed where a hook point shows them.
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let source = self.source();
        let frozen = tap.plan.rules().frozen_patterns;
        let q = &constant_if(frozen, q.shallow_clone())?;
        let k = &constant_if(frozen, k.shallow_clone())?;
        let records = [q, k, v].iter().any(|x| x.requires_grad());
        let (k, v) = context.keys_and_values(source, self.layer, k, v, records)?; // [batch, kv_head, key, d_head]
        let q = q.f_transpose(1, 2)?; // [batch, head, pos, d_head]
        let v = match &self.differential {
            Some(differential) => differential.values(&v)?, // [batch, kv_head, key, 2 d_head]
            None => v,
        };
        if !tap.plan.forms_pattern([self.point(Site::AttnScores), self.point(Site::Pattern)]) {
            let z = self.mix_unobserved(&q, &k, &v, context)?;
            return Ok(context.without_padding(z.f_transpose(1, 2)?)?); // [batch, pos, head, d_head]
        }
        let (k, v) = (self.per_query_head(k)?, self.per_query_head(v)?);
        let mut scores = self.scores(&q, &k, context.scores_mask(source, self.layer)?)?;
        let first = context.first(source, self.layer);
        if first > 0 {
            // Hook points show all keys. Those before the first lie outside of the window.
            let size = scores.size();
            let hidden =
                full(&[size[0], size[1], size[2], first], f64::NEG_INFINITY, (scores.f_kind()?, scores.device()))?;
            scores = Tensor::f_cat(&[hidden, scores], 3)?;
        }
        let scores = tap.at(self.point(Site::AttnScores), scores)?; // [batch, head, query, key]
        let scores = context.open_padding(scores)?;
        let pattern = match self.sinks_after_pattern {
            true => scores.f_softmax(-1, scores.f_kind()?)?,
            false => self.softmax(&scores)?,
        };
        let pattern = context.without_padding(pattern.f_transpose(1, 2)?)?.f_transpose(1, 2)?;
        let pattern = constant_if(frozen, pattern)?;
        let pattern = tap.at(self.point(Site::Pattern), pattern)?; // [batch, head, query, key]
        let seen = if first > 0 { pattern.f_narrow(3, first, k.size()[2])? } else { pattern };
        let mut z = seen.f_matmul(&v)?; // [batch, head, pos, d_head]
        if let (true, Some(sinks)) = (self.sinks_after_pattern, &self.sinks) {
            let positions = scores.f_logsumexp([-1i64].as_slice(), true)?; // [batch, head, query, 1]
            let share = positions.f_sub(&sinks.f_view([1, -1, 1, 1])?)?.f_sigmoid()?;
            z = z.f_mul(&constant_if(frozen, share)?)?;
        }
        Ok(z.f_transpose(1, 2)?) // [batch, pos, head, d_head]
    }

    /// Values mixed without a pattern that is shown: `[batch, head, pos, d_head]`, as all of its arguments.
    fn mix_unobserved(&self, q: &Tensor, k: &Tensor, v: &Tensor, context: &Context) -> Result<Tensor> {
        let size = q.size();
        let entries = size[0] * size[1] * size[2] * k.size()[2];
        let source = self.source();
        let first = context.first(source, self.layer);
        let mask = context.fused_mask(source, self.layer)?;
        let fusible = self.is_fusible() && !mask.requires_grad();
        match mask {
            FusedMask::InBlocks => self.in_blocks(q, k, v, context),
            _ if !fusible && entries > AT_ONCE => self.in_blocks(q, k, v, context),
            _ if !fusible => {
                let (k, v) = (self.per_query_head(k.shallow_clone())?, self.per_query_head(v.shallow_clone())?);
                let scores = self.scores(q, &k, context.scores_mask(source, self.layer)?)?;
                Ok(self.softmax(&context.open_padding(scores)?)?.f_matmul(&v)?)
            }
            FusedMask::Causal => self.fused(q, k, v, None, true),
            FusedMask::All(keys) => self.fused(q, &columns(k, keys, first)?, &columns(v, keys, first)?, None, false),
            FusedMask::Additive(keys, added) => {
                self.fused(q, &columns(k, keys, first)?, &columns(v, keys, first)?, Some(added), false)
            }
        }
    }

    /// Whether libtorch's kernel does all that is done to scores.
    fn is_fusible(&self) -> bool {
        self.soft_cap.is_none() && self.sinks.is_none()
    }

    /// Values mixed by libtorch's kernel: `[batch, head, pos, d_head]`, as all of its arguments.
    fn fused(&self, q: &Tensor, k: &Tensor, v: &Tensor, added: Option<&Tensor>, causal: bool) -> Result<Tensor> {
        if self.router.is_some() {
            let (k, v) = (self.per_query_head(k.shallow_clone())?, self.per_query_head(v.shallow_clone())?);
            let scale = 1.0 / self.scale;
            return Ok(Tensor::f_scaled_dot_product_attention(q, &k, &v, added, 0.0, causal, scale, false)?);
        }
        let grouped = self.n_kv_heads != self.n_heads;
        Ok(Tensor::f_scaled_dot_product_attention(q, k, v, added, 0.0, causal, 1.0 / self.scale, grouped)?)
    }

    /// Values mixed for some queries at a time, where all of them would need a mask, or scores, that grow with the square of the
    /// length.
    fn in_blocks(&self, q: &Tensor, k: &Tensor, v: &Tensor, context: &Context) -> Result<Tensor> {
        let fusible = self.is_fusible();
        let (k, v) = match fusible {
            true => (k.shallow_clone(), v.shallow_clone()),
            false => (self.per_query_head(k.shallow_clone())?, self.per_query_head(v.shallow_clone())?),
        };
        let size = q.size(); // [batch, head, query, d_head]
        let step = (AT_ONCE / (size[0] * size[1] * k.size()[2])).clamp(16, 1024);
        let mut parts = Vec::new();
        for start in (0..size[2]).step_by(step as usize) {
            let queries = start..(start + step).min(size[2]);
            let (keys, added) = context.block(self.source(), self.layer, &queries)?;
            let first = context.first(self.source(), self.layer);
            let (q, k, v) = (columns(q, &queries, 0)?, columns(&k, &keys, first)?, columns(&v, &keys, first)?);
            parts.push(match fusible {
                true => self.fused(&q, &k, &v, Some(&added), false)?,
                false => self.softmax(&self.scores(&q, &k, Some(&added))?)?.f_matmul(&v)?,
            });
        }
        Ok(Tensor::f_cat(&parts, 2)?)
    }

    /// Keys or values repeated for each query head of their group: `[batch, head, pos, d_head]`.
    fn per_query_head(&self, x: Tensor) -> Result<Tensor> {
        if self.n_kv_heads == self.n_heads {
            return Ok(x);
        }
        if self.router.is_some() {
            return Ok(x.f_repeat([1, self.n_heads / self.n_kv_heads, 1, 1])?); // one expert after the other
        }
        Ok(x.f_repeat_interleave_self_int(self.n_heads / self.n_kv_heads, 1, None)?)
    }

    /// Scaled, capped and masked scores: `[batch, head, query, key]`.
    fn scores(&self, q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let size = q.size();
        let (queries, keys) = (size[2], k.size()[2]);
        let shape = [size[0], size[1], queries, keys];
        let (q, k) = (q.f_flatten(0, 1)?, k.f_flatten(0, 1)?.f_transpose(1, 2)?);
        // Scale and mask ride along with the product, where no cap comes between.
        if let (Some(mask), None) = (mask, self.soft_cap) {
            let mask = mask.f_expand(shape, false)?.f_flatten(0, 1)?;
            return Ok(mask.add_product(&q, &k, 1.0, 1.0 / self.scale)?.f_view(shape)?);
        }
        let mut scores = q.f_bmm(&k)?.f_view(shape)?.div_number(self.scale)?;
        if let Some(cap) = self.soft_cap {
            scores = scores.div_number(cap)?.f_tanh()?.mul_number(cap)?;
        }
        Ok(match mask {
            Some(mask) => scores.f_add(mask)?,
            None => scores,
        })
    }

    /// The pattern: rows sum to one, or to less where there is a sink. libtorch computes it in fp32 or better within.
    fn softmax(&self, scores: &Tensor) -> Result<Tensor> {
        let kind = scores.f_kind()?;
        let Some(sinks) = &self.sinks else { return Ok(scores.f_softmax(-1, kind)?) };
        let size = scores.size();
        let sinks = sinks.f_view([1, -1, 1, 1])?.f_expand([size[0], size[1], size[2], 1], false)?;
        let scores = Tensor::f_cat(&[scores, &sinks], -1)?; // [batch, head, query, key + 1]
        Ok(scores.f_softmax(-1, kind)?.f_narrow(-1, 0, size[3])?)
    }

    /// What the heads write: `[batch, pos, d_model]`.
    fn output(&self, z: Tensor, chosen: Option<&ChosenHeads>, tap: &mut Tap) -> Flow<Tensor> {
        let point = self.point(Site::Result);
        let size = z.size(); // [batch, pos, head, d_head]
        let flat = match (&self.router, chosen) {
            (Some(router), Some(chosen)) => router.spread(&z, chosen)?.f_reshape([size[0], size[1], -1])?,
            _ => z.f_reshape([size[0], size[1], -1])?,
        };
        if !tap.live(point) {
            return Ok(self.o.forward(&flat)?);
        }
        let result = self.result(&z, chosen)?; // [batch, pos, head, d_model]
        let carries = tap.carries(point, &result);
        let result = tap.at(point, result)?;
        if !carries {
            return Ok(self.o.forward(&flat)?);
        }
        let sum = result.f_sum_dim_intlist([2i64].as_slice(), false, None)?;
        Ok(match &self.o.bias {
            Some(bias) => sum.f_add(bias)?,
            None => sum,
        })
    }

    /// Each head's own output: `[batch, pos, head, d_model]`.
    pub(crate) fn result(&self, z: &Tensor, chosen: Option<&ChosenHeads>) -> Result<Tensor> {
        if let (Some(router), Some(chosen)) = (&self.router, chosen) {
            let results = router.by_choice(z, chosen)?.into_iter().map(|z| {
                let all = Tensor::f_einsum("bphe,hem->bphm", &[&z, &self.w_o()?], None::<&[i64]>)?;
                router.of_one_expert(&all, 2) // [batch, pos, heads of an expert, d_model]
            });
            return Ok(Tensor::f_cat(&results.collect::<Result<Vec<_>>>()?, 2)?);
        }
        Ok(Tensor::f_einsum("bphe,hem->bphm", &[z, &self.w_o()?], None::<&[i64]>)?)
    }

    /// `W_O`: `[head, d_value, d_model]`, a view; of a mixture of heads, of those of all experts.
    pub(crate) fn w_o(&self) -> Result<Tensor> {
        let w = self.o.w()?; // [head * d_value, d_model]
        Ok(w.f_reshape([w.size()[0] / self.d_value, self.d_value, -1])?)
    }
}

/// Normalises all of a position's heads together: `[batch, pos, head, d_head]`.
fn of_all_heads(norm: &Norm, x: Tensor, points: NormPoints, tap: &mut Tap) -> Flow<Tensor> {
    let size = x.size();
    let flat = x.f_reshape([size[0], size[1], -1])?; // [batch, pos, head * d_head]
    Ok(norm.forward(&flat, points, tap)?.f_view(size.as_slice())?)
}

/// Some positions of `[batch, head, pos, d_head]`, which begins with position `first`: itself, where these are all.
fn columns(x: &Tensor, range: &Range<i64>, first: i64) -> Result<Tensor> {
    let len = range.end - range.start;
    match len == x.size()[2] {
        true => Ok(x.shallow_clone()),
        false => Ok(x.f_narrow(2, range.start - first, len)?),
    }
}
