//! From a checkpoint's tensors to a model's weights: each laid out once, where the product that uses it wants it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::checkpoint::Checkpoint;
use super::parts::{Entry, Part, View};
use super::processing::Processor;
use crate::config::{Activation, Experts, MlpConfig, MlpKind, Normalization, QkNorm};
use crate::model::attention::Attention;
use crate::model::block::{Block, MlpOrExperts};
use crate::model::embed::Embed;
use crate::model::linear::Linear;
use crate::model::mlp::{Act, Mlp};
use crate::model::moe::{Expert, MixtureOfExperts};
use crate::model::norm::Norm;
use crate::model::unembed::Unembed;
use crate::model::Weights;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Error, Load, Result};

/// Lays out the weights of a model of this shape.
///
/// # Errors
///
/// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::ExtraTensors`].
pub(crate) fn build(
    config: &Config,
    checkpoint: &Checkpoint,
    names: &[Entry],
    ignored: &[&str],
    load: &Load,
    processor: &Processor,
) -> Result<Weights> {
    config.validate()?;
    // Processing is done in fp32 or better, block by block.
    let work = if matches!(load.kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { load.kind };
    let builder = Builder { config, checkpoint, names, kind: work, device: load.device, used: Default::default() };
    let weights = builder.weights(processor, load)?;
    builder.nothing_left(ignored)?;
    Ok(weights)
}

struct Builder<'a> {
    config: &'a Config,
    checkpoint: &'a Checkpoint,
    names: &'a [Entry],
    kind: Kind,
    device: Device,
    used: Mutex<BTreeSet<String>>,
}

/// Which block, expert and head a part is of.
#[derive(Clone, Copy, Default)]
struct Of {
    layer: usize,
    expert: usize,
    head: usize,
}

impl Builder<'_> {
    fn weights(&self, processor: &Processor, load: &Load) -> Result<Weights> {
        let (n_layers, kind) = (self.config.n_layers, load.kind);
        let done = Mutex::new(0);
        let laid_out = || {
            self.checkpoint.release_pages();
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += 1;
            if let Some(watch) = &load.watch.0 {
                watch(*done, n_layers + 2);
            }
        };
        // Two at once: much of it is waiting for new memory. But one after the other where each is converted to another kind,
        // as what it is converted from must not be there twice; and outside files, where a tensor may record gradients.
        let at_once =
            if self.kind == kind && self.device == Device::Cpu && self.checkpoint.is_in_files() { 2 } else { 1 };
        // The largest first.
        let tied = self.is_tied(processor);
        let outside = each(at_once, 2, |which| {
            let part = match which {
                0 => Outside::Unembed(self.unembed(tied, processor, kind)?),
                _ => Outside::Embed(self.embed(processor, kind)?),
            };
            laid_out();
            Ok(part)
        })?;
        let blocks = each(at_once, n_layers, |layer| {
            let mut block = self.block(layer)?;
            processor.block(&mut block)?;
            block.cast(kind)?;
            laid_out();
            Ok(block)
        })?;
        let Ok([Outside::Unembed(mut unembed), Outside::Embed(embed)]) = <[Outside; 2]>::try_from(outside) else {
            return Err(Error::invalid("a model has an embedding and an unembedding"));
        };
        if tied {
            unembed.u.weight = embed.w_e.clone();
        }
        Ok(Weights { embed, blocks, unembed })
    }

    /// Whether the unembedding is the embedding, and stays so.
    fn is_tied(&self, processor: &Processor) -> bool {
        let same = |(u, e): (&Entry, &Entry)| u.name == e.name && !e.view.computes();
        self.entry(Part::U).zip(self.entry(Part::WE)).is_some_and(same) && !processor.unties()
    }

    /// The last norm and `W_U`; of a tied one, an empty matrix.
    fn unembed(&self, tied: bool, processor: &Processor, kind: Kind) -> Result<Unembed> {
        let (config, outside) = (self.config, Of::default());
        let (d_model, d_vocab_out) = (config.d_model as i64, config.d_vocab_out as i64);
        let ln_final = self.norm(Part::LnFinalW, Part::LnFinalB, config.norms.last(), outside, &[d_model])?;
        let weight = match tied {
            true => Tensor::f_empty([0, 0], (self.kind, self.device))?.into(),
            false => self.need(Part::U, outside, &[d_vocab_out, d_model])?,
        };
        let u = Linear { weight, bias: self.maybe(Part::UB, outside, &[d_vocab_out])? };
        let mut unembed = Unembed { ln_final, u, soft_cap: config.output_logits_soft_cap };
        if !tied {
            processor.unembed(&mut unembed)?;
        }
        unembed.cast(kind)?;
        Ok(unembed)
    }

    /// `W_E`, `W_pos`, and the norm after them.
    fn embed(&self, processor: &Processor, kind: Kind) -> Result<Embed> {
        let (config, outside) = (self.config, Of::default());
        let d_model = config.d_model as i64;
        let w_e = self.need(Part::WE, outside, &[config.d_vocab as i64, d_model])?;
        let w_pos = self.maybe(Part::WPos, outside, &[config.n_ctx as i64, d_model])?;
        let ln = match config.post_embedding_ln() {
            true => self.norm(Part::EmbedLnW, Part::EmbedLnB, config.normalization_type(), outside, &[d_model])?,
            false => Norm::none(),
        };
        let mut embed = Embed { w_e, w_pos, ln };
        processor.embed(&embed)?;
        embed.cast(kind)?;
        Ok(embed)
    }

    fn block(&self, layer: usize) -> Result<Block> {
        let config = self.config;
        let of = Of { layer, ..Of::default() };
        let d_model = config.d_model as i64;
        let norm = |w, b| self.norm(w, b, config.normalization_type(), of, &[d_model]);
        let post = |w, b| match self.entry(w) {
            Some(_) => norm(w, b),
            None => Ok(Norm::none()),
        };
        let ln2 = if config.attn_only() { Norm::none() } else { norm(Part::Ln2W, Part::Ln2B)? };
        let mlp = match &config.mlp {
            None => None,
            Some(mlp) => Some(match &mlp.kind {
                MlpKind::Plain | MlpKind::Gated => MlpOrExperts::Mlp(self.mlp(of, mlp)?),
                MlpKind::Experts(experts) => MlpOrExperts::Experts(self.experts(layer, mlp, experts)?),
            }),
        };
        Ok(Block {
            ln1: norm(Part::Ln1W, Part::Ln1B)?,
            attn: self.attention(of)?,
            ln1_post: post(Part::Ln1PostW, Part::Ln1PostB)?,
            ln2,
            mlp,
            ln2_post: post(Part::Ln2PostW, Part::Ln2PostB)?,
            norm_position: config.norm_position(),
            parallel: config.parallel_attn_mlp,
            layer,
        })
    }

    fn attention(&self, of: Of) -> Result<Attention> {
        let config = self.config;
        let (n_q, n_kv) = (config.n_heads as i64, config.n_key_value_heads as i64);
        let (d_model, d_head) = (config.d_model as i64, config.d_head as i64);
        let sizes = [n_q * d_head, n_kv * d_head, n_kv * d_head];
        let total: i64 = sizes.iter().sum();

        let mut weight = Tensor::f_empty([total, d_model], (self.kind, self.device))?;
        let parts = [Part::Q, Part::K, Part::V];
        let mut pieces = Vec::new();
        for (part, rows) in parts.into_iter().zip(sizes) {
            pieces.push(self.find(part, of, &[rows, d_model])?);
        }
        let views = parts.map(|part| self.entry(part).map(|entry| entry.view));
        if views == [0, 1, 2].map(|which| Some(View::QkvBlockTransposed(which))) {
            // At once: libtorch turns a whole matrix round in half the time of its parts.
            let name = &pieces[0].1;
            if let Some(whole) = self.checkpoint.tensor(name)? {
                weight.f_copy_(&whole.f_tr()?)?; // from [d_model, q k v]
            }
        } else {
            let mut start = 0;
            for ((piece, _), rows) in pieces.iter().zip(sizes) {
                weight.f_narrow(0, start, rows)?.f_copy_(piece)?;
                start += rows;
            }
        }
        let biases = [Part::QB, Part::KB, Part::VB];
        let bias = if biases.iter().any(|part| self.entry(*part).is_some()) {
            let bias = Tensor::f_zeros([total], (self.kind, self.device))?;
            let mut start = 0;
            for (part, rows) in biases.into_iter().zip(sizes) {
                if self.entry(part).is_some() {
                    let (piece, _) = self.find(part, of, &[rows])?;
                    bias.f_narrow(0, start, rows)?.f_copy_(&piece)?;
                }
                start += rows;
            }
            Some(bias)
        } else {
            None
        };
        let o = self.linear(Part::O, Part::OB, of, n_q * d_head, d_model)?;
        let mut attention =
            Attention::new(config, of.layer, Linear { weight: weight.into(), bias: bias.map(SharedTensor::from) }, o);
        if let Some(qk_norm) = config.qk_norm() {
            let (kind, q_shape, k_shape) = match qk_norm {
                QkNorm::AllHeads(kind) => (kind, vec![n_q * d_head], vec![n_kv * d_head]),
                QkNorm::PerHead(kind) => (kind, vec![d_head], vec![d_head]),
            };
            attention.q_norm = Some(self.head_norm(Part::QNormW, Part::QNormB, kind, of, &q_shape, n_q)?);
            attention.k_norm = Some(self.head_norm(Part::KNormW, Part::KNormB, kind, of, &k_shape, n_kv)?);
        }
        attention.sinks = match config.use_attention_sinks() {
            true => Some(self.need(Part::Sinks, of, &[n_q])?),
            false => None,
        };
        Ok(attention)
    }

    fn mlp(&self, of: Of, config: &MlpConfig) -> Result<Mlp> {
        let (d_model, d_mlp) = (self.config.d_model as i64, config.d_mlp as i64);
        let gate = match config.kind == MlpKind::Gated {
            true => Some(self.linear(Part::Gate, Part::GateB, of, d_model, d_mlp)?),
            false => None,
        };
        let ln = match config.activation {
            Activation::SoluLn => {
                // Its norm is a layer norm whatever the others are, folded with them.
                let folded = matches!(self.config.norms.kind, Normalization::LNPre | Normalization::RMSPre)
                    && self.entry(Part::MlpLnW).is_none_or(|entry| !self.checkpoint.has(&name(entry.name, of)));
                let kind = if folded { Normalization::LNPre } else { Normalization::LN };
                Some(self.norm(Part::MlpLnW, Part::MlpLnB, kind, of, &[d_mlp])?)
            }
            _ => None,
        };
        Ok(Mlp {
            w_in: self.linear(Part::In, Part::InB, of, d_model, d_mlp)?,
            gate,
            b_product: self.maybe(Part::ProductB, of, &[d_mlp])?,
            ln,
            w_out: self.linear(Part::Out, Part::OutB, of, d_mlp, d_model)?,
            act: self.act(of, config.activation)?,
            layer: of.layer,
        })
    }

    fn act(&self, of: Of, activation: Activation) -> Result<Act> {
        let mut act = Act::new(activation);
        if activation == Activation::Xielu {
            let one = |part| -> Result<Tensor> {
                let (tensor, _) = self.find_shaped(part, of, |size| size.iter().product::<i64>() == 1, &[1])?;
                Ok(tensor.f_reshape([1])?.f_to_device_(self.device, Kind::Float, false, true)?)
            };
            let softplus = |part| -> Result<Tensor> { Ok(one(part)?.f_softplus()?) };
            let (beta, eps) = (one(Part::XieluBeta)?, one(Part::XieluEps)?);
            if self.entry(Part::XieluPositive).is_some() {
                act.xielu =
                    Some([one(Part::XieluPositive)?, one(Part::XieluNegative)?, beta, eps].map(SharedTensor::from));
                return Ok(act);
            }
            let alpha_n = softplus(Part::XieluAlphaN)?.f_add(&beta)?;
            act.xielu = Some([softplus(Part::XieluAlphaP)?, alpha_n, beta, eps].map(SharedTensor::from));
        }
        Ok(act)
    }

    fn experts(&self, layer: usize, config: &MlpConfig, moe: &Experts) -> Result<MixtureOfExperts> {
        let (d_model, d_mlp) = (self.config.d_model as i64, config.d_mlp as i64);
        let of = Of { layer, ..Of::default() };
        let expert = |expert| -> Result<Expert> {
            let of = Of { layer, expert, head: 0 };
            Ok(Expert {
                gate: self.linear(Part::Gate, Part::GateB, of, d_model, d_mlp)?,
                w_in: self.linear(Part::In, Part::InB, of, d_model, d_mlp)?,
                w_out: self.linear(Part::Out, Part::OutB, of, d_mlp, d_model)?,
            })
        };
        Ok(MixtureOfExperts {
            router: self.linear(Part::Router, Part::RouterB, of, d_model, moe.num_experts as i64)?,
            experts: (0..moe.num_experts).map(expert).collect::<Result<_>>()?,
            moe: moe.clone(),
            act: self.act(of, config.activation)?,
            layer,
        })
    }

    fn linear(&self, w: Part, b: Part, of: Of, d_in: i64, d_out: i64) -> Result<Linear> {
        // Row by row, however the checkpoint has it: oneDNN's product is up to a sixth slower the other way round.
        let mut weight = Tensor::f_empty([d_out, d_in], (self.kind, self.device))?;
        weight.f_copy_(&self.find(w, of, &[d_out, d_in])?.0)?;
        Ok(Linear { weight: weight.into(), bias: self.maybe(b, of, &[d_out])? })
    }

    fn norm(&self, w: Part, b: Part, kind: Normalization, of: Of, shape: &[i64]) -> Result<Norm> {
        if kind == Normalization::None {
            return Ok(Norm::none());
        }
        let w = self.maybe(w, of, shape)?;
        let b = if kind.centers() { self.maybe(b, of, shape)? } else { None };
        Ok(Norm { kind, w, b, eps: self.config.eps() })
    }

    /// A norm of queries or keys, whose gain may be one for all heads or one for each.
    fn head_norm(&self, w: Part, b: Part, kind: Normalization, of: Of, shape: &[i64], heads: i64) -> Result<Norm> {
        let gains = |part| -> Result<Option<SharedTensor>> {
            match self.entry(part) {
                None => Ok(None),
                Some(entry) if entry.name.contains("{h}") => {
                    let one = |head| Ok(self.find(part, Of { head, ..of }, shape)?.0);
                    let each = (0..heads as usize).map(one).collect::<Result<Vec<_>>>()?;
                    self.own(&Tensor::f_stack(&each, 0)?).map(Some) // [head, d_head]
                }
                Some(_) => {
                    let each = [heads, shape[0]];
                    let (found, _) = self.find_shaped(part, of, |size| size == shape || size == each, shape)?;
                    self.own(&found).map(Some)
                }
            }
        };
        Ok(Norm { kind, w: gains(w)?, b: gains(b)?, eps: self.config.eps() })
    }

    fn entry(&self, part: Part) -> Option<&Entry> {
        self.names.iter().find(|entry| entry.part == part)
    }

    /// A part in the model's own memory.
    fn need(&self, part: Part, of: Of, shape: &[i64]) -> Result<SharedTensor> {
        let (view, _) = self.find(part, of, shape)?;
        match self.entry(part).is_some_and(|entry| entry.view.copies()) {
            true => Ok(view.f_to_device_(self.device, self.kind, false, false)?.into()),
            false => self.own(&view),
        }
    }

    /// A part that only some families have.
    fn maybe(&self, part: Part, of: Of, shape: &[i64]) -> Result<Option<SharedTensor>> {
        match self.entry(part) {
            Some(_) => self.need(part, of, shape).map(Some),
            None => Ok(None),
        }
    }

    /// A copy in the model's kind and on its device; in memory it lies as it lay.
    fn own(&self, tensor: &Tensor) -> Result<SharedTensor> {
        Ok(tensor.f_to_device_(self.device, self.kind, false, true)?.into())
    }

    fn find(&self, part: Part, of: Of, shape: &[i64]) -> Result<(Tensor, String)> {
        self.find_shaped(part, of, |size| size == shape, shape)
    }

    /// A view of the checkpoint, of the shape that the configuration implies.
    fn find_shaped(
        &self,
        part: Part,
        of: Of,
        fits: impl Fn(&[i64]) -> bool,
        shape: &[i64],
    ) -> Result<(Tensor, String)> {
        let nowhere = || Error::MissingTensor { name: format!("{part:?}"), expected: shape.to_vec() };
        let entry = self.entry(part).ok_or_else(nowhere)?;
        let (name, expected) = (name(entry.name, of), entry.view.stored(shape, self.config));
        let Some(whole) = self.checkpoint.tensor(&name)? else { return Err(Error::MissingTensor { name, expected }) };
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        let found = whole.size();
        let right = if entry.view == View::AsIs { fits(&found) } else { found == expected };
        if !right {
            return Err(Error::TensorShape { name, found, expected });
        }
        let view = entry.view.of(&whole, self.config, of.expert, self.kind)?;
        Ok((view, name))
    }

    /// Every tensor of the checkpoint has been used, or is one that is known to be of no use.
    fn nothing_left(&self, ignored: &[&str]) -> Result<()> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<_> = self
            .checkpoint
            .names()
            .filter(|name| !used.contains(*name) && !ignored.iter().any(|end| name.ends_with(end)))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        let mut names: Vec<String> = left
            .iter()
            .take(5)
            .map(|name| format!("`{name}` {:?}", self.checkpoint.shape(name).unwrap_or_default()))
            .collect();
        if left.len() > names.len() {
            names.push("…".into());
        }
        Err(Error::ExtraTensors { count: left.len(), names: names.join(", ") })
    }
}

/// What lies outside the blocks.
enum Outside {
    Unembed(Unembed),
    Embed(Embed),
}

/// The results of the tasks `0..n`, `at_once` of which are done at a time; of several errors, that of the first task.
fn each<T: Send>(at_once: usize, n: usize, task: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut results = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= n {
                break;
            }
            let result = task(index);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.push((index, result));
        }
        results
    };
    let mut results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..at_once.min(n)).map(|_| scope.spawn(work)).collect();
        let mut results = work();
        for other in others {
            results.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The name of a part in a block, expert or head.
fn name(pattern: &str, of: Of) -> String {
    let with = |name: String, what, index: usize| name.replace(what, &index.to_string());
    with(with(with(pattern.into(), "{l}", of.layer), "{e}", of.expert), "{h}", of.head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_their_tasks_and_the_first_error_counts() {
        for at_once in [1, 2] {
            assert_eq!(each(at_once, 9, |index| Ok(index * index)).unwrap(), [0, 1, 4, 9, 16, 25, 36, 49, 64]);
            assert!(each(at_once, 0, Ok).unwrap().is_empty());
            let failing = |index| if index < 3 { Ok(index) } else { Err(Error::invalid(format!("task {index}"))) };
            assert!(each(at_once, 9, failing).unwrap_err().to_string().contains("task 3"));
        }
    }
}
