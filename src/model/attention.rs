//! [`Attention`]: queries, keys and values, the pattern they make, and what it mixes into the stream.

use tch::Tensor;

use super::attention_input::AttentionInput;
use super::context::{Context, KeySource};
use super::differential::Differential;
use super::disentangled::DisentangledHeads;
use super::dynamic_mask::DynamicMask;
use super::head_router::{self, ChosenHeads, HeadRouter};
use super::indexer::{IndexReads, Indexer};
use super::key_value_store::held::NewKeys;
use super::latent::{per_head, Latent};
use super::linear::Linear;
use super::norm::{Norm, NormPoints};
use super::parameters::module;
use super::part::Part;
use crate::config::{GateFunction, PositionalEmbedding, QkNorm};
use crate::hook::{self, HookPoint, Site};
use crate::run::{Flow, Tap};
use crate::tensor::scalar::Scalar;
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
    /// Chooses the keys that each query sees.
    pub(crate) indexer: Option<Indexer>,
    /// Chooses the heads of each token from those of several experts.
    pub(crate) router: Option<HeadRouter>,
    /// What the gates of the heads' output are made of.
    pub(crate) gate: Option<Linear>,
    /// `n_heads · d_value` to `d_model`.
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Norm>,
    pub(crate) k_norm: Option<Norm>,
    /// Of each head's values; without a gain.
    pub(crate) v_norm: Option<Norm>,
    /// The layer whose keys and values are looked at, where these are not the layer's own.
    pub(crate) shares: Option<usize>,
    /// The score of looking at nothing: `[head]`.
    pub(crate) sinks: Option<SharedTensor>,
    /// The table of relative biases of this layer and, unless they have their own, of those after it: `[bucket, head]`.
    pub(crate) relative_bias: Option<SharedTensor>,
    pub(crate) disentangled: Option<DisentangledHeads>,
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
    pub(crate) dynamic_mask: Option<DynamicMask>,
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
    indexer: (),
    router: (),
    gate: (Part::HeadGate, Part::HeadGateB),
    q_norm: (Part::QNormW, Part::QNormB),
    k_norm: (Part::KNormW, Part::KNormB),
    sinks: Part::Sinks,
    relative_bias: Part::RelativeBias,
    disentangled: (),
    differential: (),
    dynamic_mask: (),
    z_norm: (Part::ZNormW, Part::ZNormB),
    // It has neither gain nor bias: the parts are those of another norm.
    v_norm: (Part::ZNormW, Part::ZNormB),
    o: parts.o,
} plain {
    layer, n_heads, n_kv_heads, d_head, d_value, rotation_start, scale, soft_cap, clip, qk_norm, norms_rotated, rotary,
    sinks_after_pattern, gate_function, shares,
});

/// Queries, `[batch, pos, head, d_head]`, keys, `[batch, pos, kv_head, d_head]`, and values, `[batch, pos, kv_head, d_value]`.
pub(crate) struct Projected {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    /// What keys and values are made of, after its norm, where there are latents: `[batch, pos, rank]`.
    pub(crate) latent: Option<Tensor>,
    /// What an indexer makes of the positions.
    pub(crate) index: Option<IndexReads>,
}

impl Projected {
    fn new(q: Tensor, k: Tensor, v: Tensor) -> Self {
        Projected { q, k, v, latent: None, index: None }
    }
}

impl Attention {
    /// What the configuration says, around weights.
    pub(crate) fn new(config: &Config, layer: usize, qkv: Linear, o: Linear) -> Self {
        Attention {
            qkv,
            kv: None,
            latent: None,
            indexer: None,
            router: None,
            gate: None,
            o,
            q_norm: None,
            k_norm: None,
            v_norm: None,
            shares: config.shares_keys_of(layer),
            sinks: None,
            relative_bias: None,
            disentangled: None,
            sinks_after_pattern: config.attention.sinks_after_pattern,
            layer,
            n_heads: config.heads(layer).query as i64,
            n_kv_heads: config.heads(layer).key_value as i64,
            d_head: config.d_head_of(layer) as i64,
            d_value: config.d_value_of(layer) as i64,
            rotation_start: config.rotation_start() as i64,
            scale: config.score_divisor(layer),
            soft_cap: config.attn_scores_soft_cap(),
            clip: config.clip_qkv(),
            qk_norm: config.qk_norm(),
            norms_rotated: config.attention.qk_norm_after_rotation,
            z_norm: None,
            differential: None,
            dynamic_mask: None,
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
    pub(super) fn source(&self) -> KeySource {
        if self.kv.is_some() {
            KeySource::Encoder
        } else {
            KeySource::Stream
        }
    }

    /// The hook point of a site in this attention.
    #[inline]
    pub(super) fn point(&self, site: Site) -> HookPoint {
        let site = if self.kv.is_some() { site.in_cross_attention() } else { site };
        HookPoint::in_layer(self.layer.into(), site)
    }

    /// What a key-value store holds latents by, if it holds these in place of keys and values: nothing but the rotation comes between.
    pub(crate) fn held_latent(&self) -> Option<&Latent> {
        let plain = self.clip.is_none() && self.k_norm.is_none() && self.differential.is_none();
        self.latent.as_ref().filter(|_| plain)
    }

    /// The linear maps that read the stream, through the norm before them.
    pub(crate) fn readers_mut(&mut self) -> Vec<&mut Linear> {
        let router = self.router.iter_mut().map(|router| &mut router.router);
        let indexer = self.indexer.iter_mut().flat_map(|indexer| [&mut indexer.k, &mut indexer.weights]);
        std::iter::once(&mut self.qkv).chain(&mut self.gate).chain(router).chain(indexer).collect()
    }

    /// What the heads add to the stream, before any norm after them: `[batch, pos, d_model]`.
    pub(crate) fn forward(&self, input: AttentionInput, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let gates = self.gates(&input)?; // [batch, pos, head, d_value or 1]
        let chosen = match (&self.router, &input) {
            (Some(router), AttentionInput::Shared(x)) => Some(router.route(x, layer, tap)?),
            _ => None,
        };
        if self.shares.is_some() {
            let q = self.queries(input, context, tap)?;
            let z = self.mix(&q, None, context, tap)?;
            return self.written(z, gates, chosen.as_ref(), tap);
        }
        let Projected { q, k, v, latent, index } = match (&self.kv, input) {
            (Some(kv), AttentionInput::Shared(x)) => self.project_across(kv, &x, context)?,
            (_, input) => self.project(input, chosen.as_ref(), context)?,
        };
        let mut q = tap.at(self.point(Site::Q), q)?; // [batch, pos, head, d_head]
        let mut k = tap.at(self.point(Site::K), k)?; // [batch, pos, kv_head, d_head]
        let v = tap.at(self.point(Site::V), v)?; // [batch, pos, kv_head, d_value]
        if !self.norms_rotated {
            (q, k) = self.normalized(q, k, tap)?;
        }
        let v = match &self.v_norm {
            Some(norm) => {
                norm.forward(&v, (hook::v_norm_scale(layer), hook::v_norm_normalized(layer)), tap)?.into_tensor()
            }
            None => v,
        };
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
        let latents = match (self.held_latent(), latent, context.has_store()) {
            (Some(map), Some(latent), true) => Some(map.held(&latent, &k)?), // [batch, pos, rank + rotated]
            _ => None,
        };
        let z = self.mix(
            &q,
            Some(&NewKeys { keys: &k, values: &v, latents: latents.as_ref(), index: index.as_ref(), records: false }),
            context,
            tap,
        )?;
        self.written(z, gates, chosen.as_ref(), tap)
    }

    /// The queries of a layer that looks at keys of another one: `[batch, pos, head, d_head]`.
    fn queries(&self, input: AttentionInput, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let x = match input {
            AttentionInput::Shared(x) | AttentionInput::Split { q: x, .. } => x,
        };
        let mut q = tap.at(hook::q(layer), per_head(&x, &self.qkv, self.n_heads)?)?;
        let points = (hook::q_norm_scale(layer), hook::q_norm_normalized(layer));
        let normalize = |q: Tensor, tap: &mut Tap| match &self.q_norm {
            Some(norm) => self.normalize(norm, q, points, tap),
            None => Ok(q),
        };
        if !self.norms_rotated {
            q = normalize(q, tap)?;
        }
        q = self.clip(q)?;
        if self.rotary {
            q = tap.at(hook::rot_q(layer), context.rotated(layer, q, self.rotation_start)?)?;
        }
        if self.norms_rotated {
            q = normalize(q, tap)?;
        }
        Ok(context.tempered(layer, q)?)
    }

    /// What the heads add of what they have mixed, `[batch, pos, head, d_value]`: `[batch, pos, d_model]`.
    fn written(&self, z: Tensor, gates: Option<Tensor>, chosen: Option<&ChosenHeads>, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
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
        self.output(z, chosen, tap)
    }

    /// Queries, keys and values, as views of one product where they read the same stream.
    fn project(&self, input: AttentionInput, chosen: Option<&ChosenHeads>, context: &Context) -> Result<Projected> {
        if let Some(latent) = &self.latent {
            let index = self.index_reads(latent, &input, context)?;
            return Ok(Projected { index, ..latent.project(&self.qkv, input)? });
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
                    return Ok(Projected::new(
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
                    let (k, v) = (part(all, self.n_kv_heads)?, part(all + self.n_kv_heads, self.n_kv_heads)?);
                    return Ok(Projected::new(q, k, v));
                }
                Ok(Projected::new(
                    part(0, self.n_heads)?,
                    part(self.n_heads, self.n_kv_heads)?,
                    part(self.n_heads + self.n_kv_heads, self.n_kv_heads)?,
                ))
            }
            AttentionInput::Split { q, k, v, .. } => {
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
                Ok(Projected::new(
                    one(q, 0, self.n_heads, self.d_head)?,
                    one(k, n_q, self.n_kv_heads, self.d_head)?,
                    one(v, n_q + n_k, self.n_kv_heads, self.d_value)?,
                ))
            }
        }
    }

    /// What an indexer makes of the positions, where it has a choice to make or its keys are kept. It reads the stream itself: hooks that
    /// change what heads read do not reach it.
    fn index_reads(&self, latent: &Latent, input: &AttentionInput, context: &Context) -> Result<Option<IndexReads>> {
        let (Some(indexer), Some(x)) = (&self.indexer, input.itself()) else { return Ok(None) };
        match context.has_store() || indexer.chooses_among(context.layout.span.keys()) {
            true => Ok(Some(indexer.read(x, &latent.of_queries(&self.qkv, x)?, context)?)),
            false => Ok(None),
        }
    }

    /// Queries of the stream, and keys and values of the encoder's output.
    fn project_across(&self, kv: &Linear, x: &Tensor, context: &Context) -> Result<Projected> {
        let q = per_head(x, &self.qkv, self.n_heads)?; // [batch, pos, head, d_head]
        let kv = context.encoder_product(self.layer, kv)?; // [batch, encoder_pos, n_kv_heads (d_head + d_value)]
        let part = |start, width| -> Result<Tensor> {
            let part = kv.f_narrow(2, start, self.n_kv_heads * width)?;
            let size = part.size();
            Ok(part.f_view([size[0], size[1], self.n_kv_heads, width])?)
        };
        Ok(Projected::new(q, part(0, self.d_head)?, part(self.n_kv_heads * self.d_head, self.d_value)?))
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
