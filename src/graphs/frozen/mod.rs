//! [`FrozenModel`]: a model at the patterns, gates and scales of one run, where everything but its units is linear.

mod attention;

use tch::{Kind, Tensor};

pub(super) use attention::FrozenAttention;

use crate::analysis::frozen_head::FrozenHead;
use crate::analysis::frozen_norm::FrozenNorm;
use crate::analysis::window::{View, Window, WindowOptions};
use crate::cache::ActivationCache;
use crate::component::{Sublayer, Target};
use crate::config::NormPosition;
use crate::hook::{self, HookPoint};
use crate::model::placed_norm::PlacedNorm;
use crate::model::{EncoderOutput, Transformer};
use crate::tensor::precision::widened;
use crate::text::positions::Positions;
use crate::{config, Config, Result};

/// A model at the patterns, gates and scales of a run of one prompt. What its MLPs add is no function of the stream here: units stand for
/// them.
pub(super) struct FrozenModel<'m> {
    pub(super) layers: Vec<FrozenLayer<'m>>,
    pub(super) last_norm: FrozenNorm,
    pub(super) head: Option<FrozenHead>,
    /// Token embeddings: `[pos, d_model]`.
    pub(super) embed: Tensor,
    /// What is added to them: `[pos, d_model]`.
    pub(super) pos_embed: Option<Tensor>,
    /// What cross-attention reads: `[1, encoder_pos, d_encoder]`.
    pub(super) encoder: Option<Tensor>,
    pub(super) n_pos: usize,
}

/// A layer of a [`FrozenModel`].
pub(super) struct FrozenLayer<'m> {
    pub(super) before_attn: FrozenNorm,
    pub(super) attention: FrozenAttention<'m>,
    /// The layer whose values the heads mix: this one, or an earlier one.
    pub(super) values_of: usize,
    pub(super) cross: Option<FrozenCross<'m>>,
    pub(super) after_attn: FrozenNorm,
    pub(super) of_stream_after_attn: Option<FrozenNorm>,
    pub(super) before_mlp: FrozenNorm,
    pub(super) after_mlp: FrozenNorm,
    pub(super) of_stream_after_mlp: Option<FrozenNorm>,
    /// What multiplies the stream before attention and before the MLP add to it, and once the layer has added to it: `[1]`, or `[d_model]`.
    pub(super) factor_before_attn: Option<Tensor>,
    pub(super) factor_before_mlp: Option<Tensor>,
    pub(super) layer_factor: Option<Tensor>,
    /// What the per-layer embedding adds: `[1, pos, d_model]`.
    pub(super) layer_embedding: Option<Tensor>,
    /// What attention adds to the stream where it reads nothing: biases. `[1, pos, d_model]`.
    pub(super) attn_of_nothing: Tensor,
}

/// The cross-attention of a layer, which reads the output of an encoder.
pub(super) struct FrozenCross<'m> {
    pub(super) attention: FrozenAttention<'m>,
    pub(super) after: FrozenNorm,
    pub(super) of_stream_after: Option<FrozenNorm>,
    /// What it adds where it reads nothing: biases. `[1, pos, d_model]`.
    pub(super) of_nothing: Tensor,
}

/// The same, but for what only heads that are nodes leave: the biases after `W_O`.
pub(super) fn bias_of_heads(layer: &FrozenLayer<'_>, z: &Tensor) -> Result<Tensor> {
    layer.after_attn.with_bias(layer.after_attn.apply(&layer.attention.output(&z.f_zeros_like()?)?)?)
}

/// The scales of these norms.
fn scales(norms: impl IntoIterator<Item = Option<(HookPoint, HookPoint)>>) -> impl Iterator<Item = HookPoint> {
    norms.into_iter().flatten().map(|points| points.0)
}

/// Where the MLP of a layer reads the stream.
pub(super) fn stream_of_mlp(config: &Config, layer: usize) -> HookPoint {
    match (config.norm_position(), config.parallel_attn_mlp) {
        (NormPosition::InStream, _) => hook::mlp_hook_in(layer), // behind the norm of the stream
        (_, true) => hook::resid_pre(layer),
        (_, false) if config.attention.cross.is_some() => hook::resid_mid_cross(layer),
        (_, false) => hook::resid_mid(layer),
    }
}

/// The norm through which the MLP of a layer alone reads the stream: none where that is of the stream itself.
pub(super) fn norm_before_mlp(model: &Transformer, layer: usize) -> Result<Option<PlacedNorm<'_>>> {
    match model.norm_of_stream(layer, Sublayer::Attention)? {
        Some(_) => Ok(None),
        None => model.norm_before(Target::Mlp(layer as i64)),
    }
}

impl<'m> FrozenModel<'m> {
    /// The points of a run that it is made of.
    pub(super) fn points(model: &Transformer) -> Result<Vec<HookPoint>> {
        let mut points = vec![hook::embedding(model.config())];
        if adds_positions(model) {
            points.push(hook::pos_embed());
        }
        for layer in 0..model.config().n_layers {
            points.push(hook::resid_pre(layer));
            points.extend(FrozenAttention::points(model.attention_layer(layer)?, layer));
            if let Some(cross) = model.cross_attention(layer)? {
                points.extend(FrozenAttention::points(cross, layer));
                points.extend(scales([
                    model.norm_before_cross(layer)?.map(|norm| norm.points),
                    model.norm_after(layer, Sublayer::CrossAttention)?.map(|norm| norm.points),
                    model.norm_of_stream(layer, Sublayer::CrossAttention)?.map(|norm| norm.points),
                ]));
            }
            points.extend(model.config().stream.layer_embedding.map(|_| hook::ple_out(layer)));
            let has_mlp = model.mlp_or_experts(layer)?.is_some();
            let of_mlp = |norm: Option<PlacedNorm<'_>>| norm.filter(|_| has_mlp).map(|norm| norm.points);
            points.extend(scales([
                model.norm_before(Target::Attn(layer as i64))?.map(|norm| norm.points),
                model.norm_after_attn(layer)?.map(|norm| norm.points),
                model.norm_of_stream(layer, Sublayer::Attention)?.map(|norm| norm.points),
                of_mlp(norm_before_mlp(model, layer)?),
                of_mlp(model.norm_after_mlp(layer)?),
                of_mlp(model.norm_of_stream(layer, Sublayer::Mlp)?),
            ]));
        }
        points.extend(scales([model.norm_before(Target::Unembed)?.map(|norm| norm.points)]));
        if model.head().is_some() {
            points.extend(model.norm_before(Target::Unembed)?.map(|norm| norm.points.1));
        }
        points.push(hook::stream_after(model.config(), model.config().n_layers - 1));
        Ok(points)
    }

    /// The model as it was in a run of one prompt that kept these points.
    pub(super) fn of_run(cache: &'m ActivationCache, encoder: Option<&EncoderOutput>) -> Result<Self> {
        let window = whole(cache)?;
        let view = View::new(cache, &window);
        let model = cache.model();
        let encoder = encoder.map(|output| widened(output.stream())).transpose()?;
        let layers = (0..model.config().n_layers).map(|layer| {
            let cross = match &encoder {
                Some(encoder) => FrozenCross::of_run(model, layer, &view, encoder)?,
                None => None,
            };
            FrozenLayer::of_run(model, layer, &view, cross)
        });
        let embed = view.get(hook::embedding(model.config()))?.f_squeeze_dim(0)?;
        let pos_embed = match adds_positions(model) {
            true => Some(view.get(hook::pos_embed())?.f_squeeze_dim(0)?),
            false => None,
        };
        let layers = layers.collect::<Result<_>>()?;
        let n_pos = embed.size()[0] as usize;
        let last = WindowOptions { pos: Positions::from(-1), ..WindowOptions::default() }.of(cache)?;
        let last = View::new(cache, &last);
        Ok(FrozenModel {
            layers,
            encoder,
            last_norm: FrozenNorm::of_run(model.norm_before(Target::Unembed)?, &last)?,
            head: FrozenHead::of_run(&last)?,
            embed,
            pos_embed,
            n_pos,
        })
    }

    /// How many positions the encoder's output has.
    pub(super) fn encoder_positions(&self) -> usize {
        self.encoder.as_ref().map_or(0, |encoder| encoder.size()[1] as usize)
    }

    /// Directions of what the unembedding reads at the last position, `[row, d_model]`, as gradients at the stream before the last norm, with
    /// what biases add to the products: `[row, d_model]` and `[row]`.
    pub(super) fn pull_logits(&self, directions: &Tensor) -> Result<(Tensor, Tensor)> {
        let n_rows = directions.size()[0];
        let options = (directions.f_kind()?, directions.device());
        let (read, constant) = match &self.head {
            None => (directions.shallow_clone(), Tensor::f_zeros([n_rows], options)?),
            Some(head) => {
                let (mut pulled, mut constants) = (Vec::new(), Vec::new());
                for row in 0..n_rows {
                    let column = directions.f_get(row)?.f_view([1, 1, -1, 1])?; // [1, 1, d_model, 1]
                    pulled.push(head.pull_back(&column)?.f_reshape([1, -1])?);
                    constants.push(head.constant(&column)?.f_reshape([1])?);
                }
                (Tensor::f_cat(&pulled, 0)?, Tensor::f_cat(&constants, 0)?)
            }
        };
        let constant = match &self.last_norm.b {
            Some(bias) => constant.f_add(&read.f_matmul(&bias.f_to_kind(options.0)?)?)?,
            None => constant,
        };
        let first = Tensor::f_zeros([n_rows], (Kind::Int64, options.1))?;
        Ok((self.last_norm.pull_rows(&read, &first, true)?, constant))
    }
}

/// Whether position embeddings are added to the stream.
fn adds_positions(model: &Transformer) -> bool {
    let config = model.config();
    !config.has_full_embed()
        && matches!(config.positions, config::Positions::Learned | config::Positions::Sinusoidal(_))
}

/// All positions of a cache.
pub(super) fn whole(cache: &ActivationCache) -> Result<Window> {
    WindowOptions::default().of(cache)
}

impl<'m> FrozenLayer<'m> {
    fn of_run(model: &'m Transformer, layer: usize, view: &View, cross: Option<FrozenCross<'m>>) -> Result<Self> {
        let has_mlp = model.mlp_or_experts(layer)?.is_some();
        let norm = |norm: Option<PlacedNorm<'_>>| FrozenNorm::of_run(norm, view);
        let norm_of_mlp = |placed: Option<PlacedNorm<'_>>| norm(placed.filter(|_| has_mlp));
        let of_stream = |after: Sublayer| -> Result<Option<FrozenNorm>> {
            match model.norm_of_stream(layer, after)? {
                Some(placed) if has_mlp || after == Sublayer::Attention => norm(Some(placed)).map(Some),
                _ => Ok(None),
            }
        };
        let before_attn = norm(model.norm_before(Target::Attn(layer as i64))?)?;
        let after_attn = norm(model.norm_after_attn(layer)?)?;
        let values_of = model.config().shares_keys_of(layer).unwrap_or(layer);
        let before_values = match values_of == layer {
            true => before_attn.handle(),
            false => norm(model.norm_before(Target::Attn(values_of as i64))?)?,
        };
        let stream = view.get(hook::resid_pre(values_of))?; // [1, pos, d_model]
        let read = before_values.with_bias(before_values.apply(&stream)?)?;
        let nothing = before_values.with_bias(stream.f_zeros_like()?)?;
        let attentions = (model.attention_layer(layer)?, model.attention_layer(values_of)?);
        let attention = FrozenAttention::of_run(attentions, view, &read, &nothing)?;
        let written = attention.output(&attention.z_of_nothing)?;
        let attn_of_nothing = after_attn.with_bias(after_attn.apply(&written)?)?;
        Ok(FrozenLayer {
            before_attn,
            after_attn,
            of_stream_after_attn: of_stream(Sublayer::Attention)?,
            before_mlp: norm_of_mlp(norm_before_mlp(model, layer)?)?,
            after_mlp: norm_of_mlp(model.norm_after_mlp(layer)?)?,
            of_stream_after_mlp: of_stream(Sublayer::Mlp)?,
            factor_before_attn: model.stream_factor(layer, Sublayer::Attention)?,
            factor_before_mlp: model.stream_factor(layer, Sublayer::Mlp)?,
            layer_factor: model.layer_factor(layer)?,
            layer_embedding: match model.config().stream.layer_embedding {
                Some(_) => Some(view.get(hook::ple_out(layer))?),
                None => None,
            },
            values_of,
            cross,
            attention,
            attn_of_nothing,
        })
    }
}

impl<'m> FrozenCross<'m> {
    /// `encoder` is what it reads: `[1, encoder_pos, d_encoder]`.
    fn of_run(model: &'m Transformer, layer: usize, view: &View, encoder: &Tensor) -> Result<Option<Self>> {
        let Some(attn) = model.cross_attention(layer)? else { return Ok(None) };
        let after = FrozenNorm::of_run(model.norm_after(layer, Sublayer::CrossAttention)?, view)?;
        let of_stream = model.norm_of_stream(layer, Sublayer::CrossAttention)?;
        let attention = FrozenAttention::of_run((attn, attn), view, encoder, &encoder.f_zeros_like()?)?;
        let written = attention.output(&attention.z_of_nothing)?;
        Ok(Some(FrozenCross {
            of_nothing: after.with_bias(after.apply(&written)?)?,
            of_stream_after: of_stream.map(|norm| FrozenNorm::of_run(Some(norm), view)).transpose()?,
            attention,
            after,
        }))
    }
}
