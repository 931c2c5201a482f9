//! From a checkpoint's tensors to a model's weights: component by component, each laid out once, processed, and converted.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::checkpoint::Checkpoint;
use super::parts::{Entry, Part};
use super::processing::Processor;
use super::reader::PartReader;
use super::tasks;
use crate::config::{
    Activation, Experts, MlpConfig, MlpKind, NormPosition, Normalization, Positions, QkNorm, SharedExpert, Stack,
};
use crate::config::{DynamicMask as DynamicMaskConfig, LayerEmbedding as LayerEmbeddingConfig};
use crate::model::attention::Attention;
use crate::model::block::{Block, MlpOrExperts};
use crate::model::cross::Cross;
use crate::model::differential::Differential;
use crate::model::disentangled::DisentangledHeads;
use crate::model::dynamic_mask::DynamicMask;
use crate::model::embed::Embed;
use crate::model::head::Head;
use crate::model::head_router::HeadRouter;
use crate::model::indexer::Indexer;
use crate::model::latent::{Latent, Up};
use crate::model::layer_embedding::{LayerEmbedding, LayerEmbeddings};
use crate::model::linear::Linear;
use crate::model::mlp::{Act, Mlp};
use crate::model::moe::{Expert, MixtureOfExperts, SeparateNorms, Shared};
use crate::model::norm::Norm;
use crate::model::parameters::{cast, check_kind};
use crate::model::part::{stream_readers, Location, ENCODER_READERS};
use crate::model::unembed::Unembed;
use crate::model::Weights;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Error, LoadOptions, Result};

/// Lays out the weights of a model of this shape.
///
/// # Errors
///
/// [`Error::Checkpoint`], [`Error::UnsupportedKind`].
pub(crate) fn build(
    config: &Config,
    checkpoint: &Checkpoint,
    table: &[Entry],
    ignored: &[&str],
    load: &LoadOptions,
    processor: &Processor,
) -> Result<Weights> {
    config.validate()?;
    check_kind(load.kind)?;
    // Processing is done in fp32 or better, block by block.
    let work_kind = if matches!(load.kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { load.kind };
    let reader = PartReader::new(config, checkpoint, table, work_kind, load.device);
    let weights = Builder { config, reader: &reader, kind: load.kind, processor }.weights(load)?;
    reader.check_all_used(ignored)?;
    Ok(weights)
}

struct Builder<'a> {
    config: &'a Config,
    reader: &'a PartReader<'a>,
    /// The model's. The reader's is the one that processing computes in.
    kind: Kind,
    processor: &'a Processor,
}

/// What lies outside the blocks.
enum Ends {
    Unembed(Unembed),
    Embed(Embed),
}

/// Added to the variance of an indexer's keys, whatever the other norms have.
const INDEXER_EPS: f64 = 1e-6;

/// Outside the blocks.
const OUTSIDE: Location = Location { layer: None, expert: None };

impl Builder<'_> {
    fn weights(&self, load: &LoadOptions) -> Result<Weights> {
        let (n_layers, checkpoint) = (self.config.n_layers, self.reader.checkpoint);
        let done = Mutex::new(0);
        let report = || {
            checkpoint.release_pages();
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += 1;
            load.progress.report(*done, n_layers + 2);
        };
        // Two at once: much of it is waiting for new memory. But one after the other where each is converted to another kind,
        // as what it is converted from must not be there twice; and outside files, where a tensor may record gradients.
        let unconverted = self.reader.kind == self.kind && self.reader.device == Device::Cpu;
        let workers = if unconverted && checkpoint.is_in_files() { 2 } else { 1 };
        // The largest first.
        let tied = self.is_tied();
        let ends = tasks::run(workers, 2, |task| {
            let end = match task {
                0 => Ends::Unembed(self.unembed(tied)?),
                _ => Ends::Embed(self.embed()?),
            };
            report();
            Ok(end)
        })?;
        let blocks = tasks::run(workers, n_layers, |layer| {
            let block = match self.reader.first_with_weights_of(layer) {
                first if first == layer => Some(self.block(layer)?),
                _ => None, // one that is there already
            };
            report();
            Ok(block)
        })?;
        let blocks = (0..n_layers).map(|layer| match blocks.get(self.reader.first_with_weights_of(layer)) {
            Some(Some(block)) => Ok(block.of_layer(layer)),
            _ => Err(Error::Internal("layers share a block that there is not")),
        });
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        let Ok([Ends::Unembed(mut unembed), Ends::Embed(embed)]) = <[Ends; 2]>::try_from(ends) else {
            return Err(Error::Internal("a model has an embedding and an unembedding"));
        };
        if let (true, Some(u)) = (tied, &mut unembed.u) {
            u.weight = embed.w_e.clone();
        }
        Ok(Weights { embed, blocks, unembed })
    }

    /// Whether the unembedding is the embedding, and stays so.
    fn is_tied(&self) -> bool {
        let one_tensor = |(u, e): (&Entry, &Entry)| u.name == e.name && !e.view.computes() && !u.view.computes();
        self.reader.entry(Part::U, OUTSIDE).zip(self.reader.entry(Part::WE, OUTSIDE)).is_some_and(one_tensor)
            && !self.processor.unties()
    }

    /// The last norm and `W_U`; of a tied one, an empty matrix. An encoder has none.
    fn unembed(&self, tied: bool) -> Result<Unembed> {
        let ln_final = self.norm(Part::LnFinalW, Part::LnFinalB, self.config.norms.last(), OUTSIDE)?;
        let ln_final = Norm { eps: self.config.norms.last_eps(), ..ln_final };
        let u = match (self.config.stack, tied) {
            (Stack::Encoder, _) => None,
            (_, true) => Some(Tensor::f_empty([0, 0], (self.reader.kind, self.reader.device))?.into()),
            (_, false) => Some(self.reader.tensor(Part::U, OUTSIDE)?),
        };
        let bias = self.reader.optional(Part::UB, OUTSIDE)?;
        let u = u.map(|weight| Linear { weight, bias });
        let head = match self.config.head {
            None => None,
            Some(head) => Some(Head {
                dense: self.linear(Part::HeadW, Part::HeadB, OUTSIDE)?,
                act: Act::new(head.activation),
                norm: match head.norm {
                    true => self.norm(Part::HeadLnW, Part::HeadLnB, self.config.normalization_type(), OUTSIDE)?,
                    false => Norm::none(),
                },
            }),
        };
        let mut unembed = Unembed { ln_final, head, u, soft_cap: self.config.output_logits_soft_cap };
        if !tied {
            self.processor.unembed(&mut unembed)?;
        }
        cast(&mut unembed, self.kind)?;
        Ok(unembed)
    }

    /// `W_E`, `W_pos`, and the norm after them.
    fn embed(&self) -> Result<Embed> {
        let w_e = self.reader.tensor(Part::WE, OUTSIDE)?;
        let w_pos = match (self.reader.optional(Part::WPos, OUTSIDE)?, self.config.positions.clone()) {
            (None, Positions::Sinusoidal(sinusoids)) => {
                let table = sinusoids.table(self.config)?;
                Some(table.f_to_device_(self.reader.device, self.reader.kind, false, true)?.into())
            }
            (w_pos, _) => w_pos,
        };
        let ln = match self.config.post_embedding_ln() {
            true => self.norm(Part::EmbedLnW, Part::EmbedLnB, self.config.normalization_type(), OUTSIDE)?,
            false => Norm::none(),
        };
        let of_layers = match self.config.stream.layer_embedding {
            Some(LayerEmbeddingConfig { width, .. }) => Some(LayerEmbeddings {
                table: self.reader.tensor(Part::PleTable, OUTSIDE)?,
                projection: Linear { weight: self.reader.tensor(Part::PleProjection, OUTSIDE)?, bias: None },
                norm: self.norm_without_bias(Part::PleProjectionNormW, OUTSIDE)?,
                width: width as i64,
            }),
            None => None,
        };
        let table = |part, rows: usize| (rows > 0).then(|| self.reader.tensor(part, OUTSIDE)).transpose();
        let w_token_type = table(Part::WTokenType, self.config.embed.token_types)?;
        let w_task_type = table(Part::WTaskType, self.config.embed.task_types)?;
        let token_dropout = self.config.embed.token_dropout.map(|token| token as i64);
        let project = match self.config.embed.width {
            None => None,
            Some(_) => Some(self.linear(Part::EmbedProject, Part::EmbedProjectB, OUTSIDE)?),
        };
        let norms_sum = self.config.norms.after_full_embed;
        let disentangled = self.config.attention.disentangled;
        let w_distance = disentangled.map(|_| self.reader.tensor(Part::WDistance, OUTSIDE)).transpose()?;
        let distance_ln = match disentangled.is_some_and(|it| it.norm) {
            true => self.norm(Part::DistanceLnW, Part::DistanceLnB, Normalization::LN, OUTSIDE)?,
            false => Norm::none(),
        };
        let mut embed = Embed {
            w_e,
            w_pos,
            w_token_type,
            w_task_type,
            token_dropout,
            ln,
            norms_sum,
            project,
            w_distance,
            distance_ln,
            of_layers,
        };
        self.processor.embed(&embed)?;
        cast(&mut embed, self.kind)?;
        Ok(embed)
    }

    fn block(&self, layer: usize) -> Result<Block> {
        let (config, location) = (self.config, Location::block(layer));
        let norm = |gain, bias| self.norm(gain, bias, config.normalization_type(), location);
        let norm_if = |has, gain, bias| if has { norm(gain, bias) } else { Ok(Norm::none()) };
        let mlp = match &config.mlp {
            None => None,
            Some(mlp) => Some(match &mlp.kind {
                MlpKind::Plain | MlpKind::Gated => MlpOrExperts::Mlp(self.mlp(layer, mlp)?),
                MlpKind::Experts(experts) => match experts.dense(layer) {
                    Some(_) => MlpOrExperts::Mlp(self.mlp(layer, mlp)?),
                    None => MlpOrExperts::Experts(Box::new(self.experts(layer, mlp, experts)?)),
                },
            }),
        };
        let mut block = Block {
            ln1: match layer == 0 && config.norms.bare_first_attention {
                true => Norm::none(),
                false => norm(Part::Ln1W, Part::Ln1B)?,
            },
            attn: self.attention(layer)?,
            ln1_post: norm_if(config.norms.position == NormPosition::BeforeAndAfter, Part::Ln1PostW, Part::Ln1PostB)?,
            cross: config.attention.cross.map(|_| self.cross(layer)).transpose()?,
            ln2: match mlp {
                // Its parts have gains of their own.
                Some(_) if config.has_separate_norms(layer) => Norm::new(config),
                Some(_) => norm(Part::Ln2W, Part::Ln2B)?,
                None => Norm::none(),
            },
            mlp,
            ln2_post: norm_if(config.has_norm_after_mlp(layer), Part::Ln2PostW, Part::Ln2PostB)?,
            ple: match config.stream.layer_embedding {
                Some(LayerEmbeddingConfig { activation, .. }) => Some(LayerEmbedding {
                    gate: Linear { weight: self.reader.tensor(Part::PleGate, location)?, bias: None },
                    out: Linear { weight: self.reader.tensor(Part::PleOut, location)?, bias: None },
                    norm: self.norm_without_bias(Part::PleLnW, location)?,
                    act: Act::new(activation),
                    layer,
                }),
                None => None,
            },
            scalar: match config.stream.layer_scalars {
                true => self.reader.optional(Part::LayerScalar, location)?,
                false => None,
            },
            stream_gains: match config.stream.gains {
                true => [
                    self.reader.optional(Part::AttnStreamW, location)?,
                    self.reader.optional(Part::MlpStreamW, location)?,
                ],
                false => [None, None],
            },
            factors: config.stream.factors.get(layer).copied().flatten(),
            norm_position: config.norm_position(),
            parallel: config.parallel_attn_mlp,
            layer,
        };
        self.processor.block(&mut block)?;
        cast(&mut block, self.kind)?;
        Ok(block)
    }

    fn attention(&self, layer: usize) -> Result<Attention> {
        let (config, location) = (self.config, Location::block(layer));
        let (weights, biases): (Vec<Part>, Vec<Part>) = stream_readers(config, layer).iter().copied().unzip();
        let bias = match biases.iter().any(|part| self.reader.has(*part, location)) {
            true => Some(self.reader.joined(&biases, location)?),
            false => None,
        };
        let weight = self.reader.joined(&weights, location)?;
        let o = self.linear(Part::O, Part::OB, location)?;
        let mut attention = Attention::new(config, layer, Linear { weight, bias }, o);
        if let Some(latent) = config.attention.latent {
            let up = |gain, up| -> Result<Up> {
                let norm = Norm {
                    kind: Normalization::RMS,
                    w: self.reader.optional(gain, location)?,
                    b: None,
                    eps: latent.eps,
                };
                Ok(Up { norm, up: Linear { weight: self.reader.tensor(up, location)?, bias: None } })
            };
            let q = latent.query_rank.map(|_| up(Part::QLatentW, Part::QUp)).transpose()?;
            attention.latent = Some(Latent::new(config, q, up(Part::KvLatentW, Part::KvUp)?));
        }
        if let Some(indexer) = config.indexer_of(layer) {
            let k_norm = Norm {
                kind: Normalization::LN,
                w: self.reader.optional(Part::IndexKNormW, location)?,
                b: self.reader.optional(Part::IndexKNormB, location)?,
                eps: INDEXER_EPS,
            };
            let q = Linear { weight: self.reader.tensor(Part::IndexQ, location)?, bias: None };
            let k = self.linear(Part::IndexK, Part::IndexKB, location)?;
            let weights = self.linear(Part::IndexWeights, Part::IndexWeightsB, location)?;
            attention.indexer = Some(Indexer::new(indexer, layer, (q, k, k_norm, weights)));
        }
        if let Some(QkNorm::AllHeads(kind) | QkNorm::PerHead(kind)) = config.qk_norm_of(layer) {
            let norm = |gain, bias, heads| -> Result<Option<Norm>> {
                let gain = self.reader.head_norm(gain, location, heads)?;
                let bias = self.reader.head_norm(bias, location, heads)?;
                Ok(Some(Norm { kind, w: gain, b: bias, eps: config.eps() }))
            };
            attention.q_norm = norm(Part::QNormW, Part::QNormB, config.heads(layer).query)?;
            if attention.shares.is_none() {
                attention.k_norm = norm(Part::KNormW, Part::KNormB, config.heads(layer).key_value)?;
            }
        }
        if let (Some(kind), None) = (config.attention.value_norm, attention.shares) {
            attention.v_norm = Some(Norm { kind, w: None, b: None, eps: config.eps() });
        }
        if let Some(kind) = config.attention.z_norm {
            attention.z_norm = Some(self.norm(Part::ZNormW, Part::ZNormB, kind, location)?);
        }
        if let Some(DynamicMaskConfig { keep }) = config.attention.dynamic_mask {
            attention.dynamic_mask = Some(DynamicMask {
                a: self.reader.tensor(Part::DynamicA, location)?,
                dt: self.linear(Part::DynamicDt, Part::DynamicDtB, location)?,
                keep: keep as i64,
            });
        }
        if config.attention.differential {
            let lambda = |part| self.reader.tensor(part, location);
            let (q1, k1) = (lambda(Part::LambdaQ1)?, lambda(Part::LambdaK1)?);
            let lambdas = [q1, k1, lambda(Part::LambdaQ2)?, lambda(Part::LambdaK2)?];
            attention.differential = Some(Differential::new(config, layer, lambdas));
        }
        if let Some(experts) = config.attention.experts {
            let router = Linear { weight: self.reader.tensor(Part::HeadRouter, location)?, bias: None };
            attention.router = Some(HeadRouter::new(config, layer, experts, router));
        }
        if config.attention.gate.is_some() {
            attention.gate = Some(self.linear(Part::HeadGate, Part::HeadGateB, location)?);
        }
        if config.has_sinks(layer) {
            attention.sinks = Some(self.reader.tensor(Part::Sinks, location)?);
        }
        if let Some(disentangled) = config.attention.disentangled {
            let own = |wanted: bool, weight, bias| {
                let wanted = wanted && !disentangled.shares_weights;
                wanted.then(|| self.linear(weight, bias, location)).transpose()
            };
            attention.disentangled = Some(DisentangledHeads {
                config: disentangled,
                key: own(disentangled.content_to_position, Part::DistanceK, Part::DistanceKB)?,
                query: own(disentangled.position_to_content, Part::DistanceQ, Part::DistanceQB)?,
            });
        }
        if config.relative_bias_owner(layer) == Some(layer) {
            attention.relative_bias = Some(self.reader.tensor(Part::RelativeBias, location)?);
        }
        Ok(attention)
    }

    /// A decoder layer's attention to an encoder's output.
    fn cross(&self, layer: usize) -> Result<Cross> {
        let (config, location) = (self.config, Location::block(layer));
        let (weights, biases): (Vec<Part>, Vec<Part>) = ENCODER_READERS.iter().copied().unzip();
        let bias = match biases.iter().any(|part| self.reader.has(*part, location)) {
            true => Some(self.reader.joined(&biases, location)?),
            false => None,
        };
        let kv = Linear { weight: self.reader.joined(&weights, location)?, bias };
        let q = self.linear(Part::CrossQ, Part::CrossQB, location)?;
        let o = self.linear(Part::CrossO, Part::CrossOB, location)?;
        let norm = |gain, bias| self.norm(gain, bias, config.normalization_type(), location);
        let ln_post = match self.reader.has(Part::CrossLnPostW, location) {
            true => norm(Part::CrossLnPostW, Part::CrossLnPostB)?,
            false => Norm::none(),
        };
        let ln = norm(Part::CrossLnW, Part::CrossLnB)?;
        Ok(Cross { ln, attn: Attention::cross(config, layer, q, kv, o), ln_post })
    }

    fn mlp(&self, layer: usize, config: &MlpConfig) -> Result<Mlp> {
        let location = Location::block(layer);
        let gated = config.kind != MlpKind::Plain;
        let gate = gated.then(|| self.linear(Part::Gate, Part::GateB, location)).transpose()?;
        let ln = match (config.activation, config.norm) {
            (_, Some(kind)) => Some(self.norm(Part::MlpLnW, Part::MlpLnB, kind, location)?),
            (Activation::SoluLn, None) => {
                // Its norm is a layer norm whatever the others are, folded with them.
                let folded = matches!(self.config.norms.kind, Normalization::LNPre | Normalization::RMSPre)
                    && !self.reader.stores(Part::MlpLnW, location);
                let kind = if folded { Normalization::LNPre } else { Normalization::LN };
                Some(self.norm(Part::MlpLnW, Part::MlpLnB, kind, location)?)
            }
            _ => None,
        };
        Ok(Mlp {
            w_in: self.linear(Part::In, Part::InB, location)?,
            gate,
            b_product: self.reader.optional(Part::ProductB, location)?,
            ln,
            w_out: self.linear(Part::Out, Part::OutB, location)?,
            act: self.activation(config.activation, location)?,
            layer,
        })
    }

    fn experts(&self, layer: usize, config: &MlpConfig, moe: &Experts) -> Result<MixtureOfExperts> {
        let location = Location::block(layer);
        let expert = |expert| -> Result<Expert> {
            let location = location.expert(expert);
            Ok(Expert {
                gate: self.linear(Part::Gate, Part::GateB, location)?,
                w_in: self.linear(Part::In, Part::InB, location)?,
                w_out: self.linear(Part::Out, Part::OutB, location)?,
            })
        };
        let shared = |shared: &SharedExpert| -> Result<Shared> {
            let mlp = Mlp {
                w_in: self.linear(Part::SharedIn, Part::SharedInB, location)?,
                gate: Some(self.linear(Part::SharedGate, Part::SharedGateB, location)?),
                b_product: None,
                ln: None,
                w_out: self.linear(Part::SharedOut, Part::SharedOutB, location)?,
                act: self.activation(config.activation, location)?,
                layer,
            };
            let weight =
                || Ok::<_, Error>(Linear { weight: self.reader.tensor(Part::SharedWeight, location)?, bias: None });
            Ok(Shared { mlp, weight: shared.gated.then(weight).transpose()? })
        };
        let gain = |part| self.reader.optional(part, location);
        let separate = match moe.separate_norms {
            true => Some(SeparateNorms {
                router_gain: gain(Part::RouterInputW)?,
                experts_gain: gain(Part::ExpertsInputW)?,
                shared_gain: gain(Part::SharedInputW)?,
                expert_scale: gain(Part::ExpertScale)?,
                after_experts: self.norm_without_bias(Part::ExpertsLnW, location)?,
                after_shared: self.norm_without_bias(Part::SharedLnW, location)?,
            }),
            false => None,
        };
        Ok(MixtureOfExperts {
            separate,
            router: self.linear(Part::Router, Part::RouterB, location)?,
            choice_bias: match moe.routing.choice_bias {
                Some(_) => Some(self.reader.choice_bias(location)?),
                None => None,
            },
            bias: self.reader.optional(Part::MixtureB, location)?,
            shared: moe.shared.as_ref().map(shared).transpose()?,
            experts: (0..moe.num_experts).map(expert).collect::<Result<_>>()?,
            moe: moe.clone(),
            act: self.activation(config.activation, location)?,
            layer,
        })
    }

    /// The activation function, with xIELU's parameters as it uses them: `softplus(alpha_p)` and `beta + softplus(alpha_n)`.
    fn activation(&self, activation: Activation, location: Location) -> Result<Act> {
        let mut act = Act::new(activation);
        if activation == Activation::Xielu {
            let constant = |part| self.reader.constant(part, location);
            let (beta, eps) = (constant(Part::XieluBeta)?, constant(Part::XieluEps)?);
            let [positive, negative] = match self.reader.has(Part::XieluPositive, location) {
                true => [constant(Part::XieluPositive)?, constant(Part::XieluNegative)?],
                false => [
                    constant(Part::XieluAlphaP)?.f_softplus()?,
                    constant(Part::XieluAlphaN)?.f_softplus()?.f_add(&beta)?,
                ],
            };
            act.xielu = Some([positive, negative, beta, eps].map(SharedTensor::from));
        }
        Ok(act)
    }

    fn linear(&self, weight: Part, bias: Part, location: Location) -> Result<Linear> {
        Ok(Linear { weight: self.reader.tensor(weight, location)?, bias: self.reader.optional(bias, location)? })
    }

    /// A norm of the blocks' kind that is never folded and has no bias.
    fn norm_without_bias(&self, gain: Part, location: Location) -> Result<Norm> {
        Ok(Norm { w: self.reader.optional(gain, location)?, ..Norm::new(self.config) })
    }

    fn norm(&self, gain: Part, bias: Part, kind: Normalization, location: Location) -> Result<Norm> {
        if kind == Normalization::None {
            return Ok(Norm::none());
        }
        let gain = self.reader.optional(gain, location)?;
        let bias = if kind.centers() { self.reader.optional(bias, location)? } else { None };
        Ok(Norm { kind, w: gain, b: bias, eps: self.config.eps() })
    }
}
