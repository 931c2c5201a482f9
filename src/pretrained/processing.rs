//! [`Processing`]: rewriting weights into an equivalent model that is easier to interpret, as TransformerLens does.
//!
//! Every step leaves each log-probability as it was. Where a step cannot do so for a model, it is done right or left out, and
//! [`HookedTransformer::processing`](crate::HookedTransformer::processing) says which and why. A block is processed right after it
//! is laid out, in fp32 or better, and cast last.

use std::fmt;

use tch::Tensor;

use crate::config::{NormConfig, NormPosition, Normalization, PositionalEmbedding};
use crate::model::attention::Attention;
use crate::model::block::{Block, MlpOrExperts};
use crate::model::embed::Embed;
use crate::model::linear::Linear;
use crate::model::norm::Norm;
use crate::model::unembed::Unembed;
use crate::tensor::factored::FactoredMatrix;
use crate::{Config, Result};

/// A step of processing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Gains and biases of norms go into the weights that read them.
    FoldLn,
    /// What writes to the stream loses its mean, which every layer norm would take off.
    CenterWritingWeights,
    /// `W_U` loses its mean over the vocabulary, to which the softmax is blind.
    CenterUnembed,
    /// A pattern's rows sum to one, so the values' biases are a constant: they go into `b_O`.
    FoldValueBiases,
    /// `W_Q`, `W_K` and `W_V`, `W_O` become the even, orthogonal factors of their products.
    RefactorFactoredAttnMatrices,
}

/// A step, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processing {
    /// The step.
    pub step: Step,
    /// Whether it was done, and what is to be said about it.
    pub done: bool,
    /// What was left out or done otherwise than TransformerLens does, and why; may be empty.
    pub note: &'static str,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::FoldLn => "fold_ln",
            Step::CenterWritingWeights => "center_writing_weights",
            Step::CenterUnembed => "center_unembed",
            Step::FoldValueBiases => "fold_value_biases",
            Step::RefactorFactoredAttnMatrices => "refactor_factored_attn_matrices",
        })
    }
}

impl fmt::Display for Processing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.done { "done" } else { "left out" };
        let colon = if self.note.is_empty() { "" } else { ": " };
        write!(f, "{} {done}{colon}{}", self.step, self.note)
    }
}

/// Which steps a user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) fold_ln: bool,
    pub(crate) center_writing_weights: bool,
    pub(crate) center_unembed: bool,
    pub(crate) fold_value_biases: bool,
    pub(crate) refactor_factored_attn_matrices: bool,
}

impl Default for Wanted {
    /// TransformerLens' defaults.
    fn default() -> Self {
        Wanted {
            fold_ln: true,
            center_writing_weights: true,
            center_unembed: true,
            fold_value_biases: true,
            refactor_factored_attn_matrices: false,
        }
    }
}

impl Wanted {
    /// No step at all.
    pub(crate) fn none() -> Self {
        Wanted {
            fold_ln: false,
            center_writing_weights: false,
            center_unembed: false,
            fold_value_biases: false,
            refactor_factored_attn_matrices: false,
        }
    }
}

/// The steps that a model of this shape gets.
#[derive(Debug)]
pub(crate) struct Processor {
    fold_ln: bool,
    center_writing: bool,
    center_unembed: bool,
    fold_value_biases: bool,
    refactor: bool,
    report: Vec<Processing>,
}

impl Processor {
    pub(crate) fn new(wanted: Wanted, config: &Config) -> Self {
        let mut report = Vec::new();
        let mut decide = |step, wanted: bool, possible: bool, note: &'static str| {
            let done = wanted && possible;
            if wanted {
                report.push(Processing { step, done, note });
            }
            done
        };
        let norm = config.normalization_type();
        let shortformer = config.positional_embedding_type() == PositionalEmbedding::Shortformer;
        let (folds, note) = match (norm, config.norm_position()) {
            (Normalization::None, _) => (false, "there are no norms"),
            _ if shortformer => (false, "queries and keys read positions past the norm"),
            (_, NormPosition::After) => {
                (true, "of the last norm; those after a sublayer stay, as nothing linear reads them")
            }
            (_, NormPosition::BeforeAndAfter) => (true, "those after a sublayer stay, as nothing linear reads them"),
            _ if config.gated_mlp() && norm.centers() => {
                (true, "a norm's bias goes into the gates' and the linear part's own biases")
            }
            _ => (true, ""),
        };
        let fold_ln = decide(Step::FoldLn, wanted.fold_ln, folds, note);
        let all_center = norm.centers() && config.norms.last().centers();
        let all_center = all_center && !shortformer;
        let note = match (norm.centers(), all_center) {
            _ if shortformer => "queries and keys read positions past the norm",
            (true, true) => "",
            (true, false) => "the last norm does not take the mean off",
            _ => "the norms do not take the mean off",
        };
        let center_writing = decide(Step::CenterWritingWeights, wanted.center_writing_weights, all_center, note);
        let uncapped = config.output_logits_soft_cap.is_none();
        let note = if uncapped { "" } else { "the logits' cap sees their mean" };
        let center_unembed = decide(Step::CenterUnembed, wanted.center_unembed, uncapped, note);
        let (folds, note) = match (config.use_attention_sinks(), config.clip_qkv()) {
            (true, _) => (false, "with attention sinks a pattern's rows do not sum to one"),
            (_, Some(_)) => (false, "values are clamped after their bias"),
            _ => (true, ""),
        };
        let fold_value_biases = decide(Step::FoldValueBiases, wanted.fold_value_biases, folds, note);
        let (possible, note) =
            match (config.rotary().is_some() || config.qk_norm().is_some(), config.n_key_value_heads == config.n_heads)
            {
                (true, _) => (false, "what happens between W_Q and W_K is not linear"),
                (_, false) => (false, "heads share their keys and values"),
                _ if config.clip_qkv().is_some() => (false, "queries, keys and values are clamped"),
                _ if !fold_value_biases => (false, "it needs fold_value_biases"),
                _ => (true, ""),
            };
        let refactor =
            decide(Step::RefactorFactoredAttnMatrices, wanted.refactor_factored_attn_matrices, possible, note);
        Processor { fold_ln, center_writing, center_unembed, fold_value_biases, refactor, report }
    }

    pub(crate) fn report(self) -> Vec<Processing> {
        self.report
    }

    /// The norms from now on.
    pub(crate) fn norms(&self, config: &Config) -> NormConfig {
        let mut norms = config.norms.clone();
        if self.fold_ln {
            let last = norms.last().folded();
            if norms.position != NormPosition::After {
                norms.kind = norms.kind.folded();
            }
            norms.last = (last != norms.kind).then_some(last);
        }
        norms
    }

    pub(crate) fn embed(&self, embed: &Embed) -> Result<()> {
        if self.center_writing {
            center_rows(&embed.w_e)?;
            if let Some(w_pos) = &embed.w_pos {
                center_rows(w_pos)?;
            }
        }
        Ok(())
    }

    pub(crate) fn block(&self, block: &mut Block) -> Result<()> {
        if self.fold_ln && block.norm_position != NormPosition::After {
            fold(&mut block.ln1, &mut [&mut block.attn.qkv])?;
            match &mut block.mlp {
                None => {}
                Some(MlpOrExperts::Mlp(mlp)) => match &mut mlp.gate {
                    Some(gate) => fold(&mut block.ln2, &mut [&mut mlp.w_in, gate])?,
                    None => fold(&mut block.ln2, &mut [&mut mlp.w_in])?,
                },
                Some(MlpOrExperts::Experts(mixture)) => {
                    let mut readers = vec![&mut mixture.router];
                    for expert in &mut mixture.experts {
                        readers.extend([&mut expert.gate, &mut expert.w_in]);
                    }
                    fold(&mut block.ln2, &mut readers)?;
                }
            }
        }
        if self.fold_ln {
            if let Some(MlpOrExperts::Mlp(mlp)) = &mut block.mlp {
                if let Some(ln) = &mut mlp.ln {
                    fold(ln, &mut [&mut mlp.w_out])?;
                }
            }
        }
        if self.center_writing {
            center_writer(&block.attn.o)?;
            match &mut block.mlp {
                None => {}
                Some(MlpOrExperts::Mlp(mlp)) => center_writer(&mlp.w_out)?,
                Some(MlpOrExperts::Experts(mixture)) => {
                    for expert in &mut mixture.experts {
                        center_writer(&expert.w_out)?;
                    }
                }
            }
        }
        if self.fold_value_biases {
            fold_value_biases(&mut block.attn)?;
        }
        if self.refactor {
            refactor(&mut block.attn)?;
        }
        Ok(())
    }

    /// Whether an unembedding that is the embedding becomes another matrix.
    pub(crate) fn unties(&self) -> bool {
        self.fold_ln || self.center_unembed || self.center_writing
    }

    pub(crate) fn unembed(&self, unembed: &mut Unembed) -> Result<()> {
        if self.fold_ln {
            fold(&mut unembed.ln_final, &mut [&mut unembed.u])?;
        }
        if self.center_unembed {
            let mut weight = unembed.u.weight.shallow_clone(); // [d_vocab_out, d_model]
            let mean = weight.f_mean_dim([0i64].as_slice(), true, None)?;
            let _ = weight.f_sub_(&mean)?;
            if let Some(bias) = &unembed.u.bias {
                let mean = bias.f_mean(None)?;
                let _ = bias.shallow_clone().f_sub_(&mean)?;
            }
        }
        Ok(())
    }
}

/// How many rows of a matrix are read and changed before the next ones: few enough to stay in the processor's cache meanwhile.
const ROWS: i64 = 1024;

/// Folds a norm's gain and bias into what reads it: `W' = w W`, `b' = b_ln W + b`.
///
/// A centred input has no mean, so the weights that read it lose theirs as well.
fn fold(norm: &mut Norm, readers: &mut [&mut Linear]) -> Result<()> {
    for linear in readers {
        let mut constants = Vec::new();
        for mut rows in linear.weight.f_split(ROWS, 0)? {
            // rows: [out, in], a view
            if let Some(b) = &norm.b {
                constants.push(rows.f_mv(b)?); // [out]
            }
            if let Some(w) = &norm.w {
                let _ = rows.f_mul_(w)?;
            }
            if norm.kind.centers() {
                let mean = rows.f_mean_dim([1i64].as_slice(), true, None)?;
                let _ = rows.f_sub_(&mean)?;
            }
        }
        if !constants.is_empty() {
            let constant = Tensor::f_cat(&constants, 0)?;
            linear.bias = Some(match &linear.bias {
                Some(bias) => bias.f_add(&constant)?.into(),
                None => constant.into(),
            });
        }
    }
    norm.kind = norm.kind.folded();
    (norm.w, norm.b) = (None, None);
    Ok(())
}

/// `[row, d_model]`, each row without its mean.
fn center_rows(rows: &Tensor) -> Result<()> {
    let mean = rows.f_mean_dim([1i64].as_slice(), true, None)?;
    let _ = rows.shallow_clone().f_sub_(&mean)?;
    Ok(())
}

/// What a product writes to the stream, without its mean.
fn center_writer(linear: &Linear) -> Result<()> {
    let mut weight = linear.weight.shallow_clone(); // [d_model, in]
    let mean = weight.f_mean_dim([0i64].as_slice(), true, None)?;
    let _ = weight.f_sub_(&mean)?;
    if let Some(bias) = &linear.bias {
        let mean = bias.f_mean(None)?;
        let _ = bias.shallow_clone().f_sub_(&mean)?;
    }
    Ok(())
}

/// `b_O' = b_O + Σ_heads b_V W_O`, `b_V' = 0`.
fn fold_value_biases(attn: &mut Attention) -> Result<()> {
    let Some(bias) = &mut attn.qkv.bias else { return Ok(()) };
    let n_kv = attn.n_kv_heads * attn.d_head;
    let mut b_v = bias.f_narrow(0, bias.size()[0] - n_kv, n_kv)?;
    let per_head = b_v
        .f_view([attn.n_kv_heads, attn.d_head])?
        .f_repeat_interleave_self_int(attn.n_heads / attn.n_kv_heads, 0, None)?
        .f_flatten(0, 1)?; // [head * d_head]
    let constant = attn.o.weight.f_mv(&per_head)?; // [d_model]
    attn.o.bias = Some(match &attn.o.bias {
        Some(bias) => bias.f_add(&constant)?.into(),
        None => constant.into(),
    });
    let _ = b_v.f_zero_()?;
    Ok(())
}

/// `W_Q W_Kᵀ` (with biases) and `W_V W_O` keep their products; their factors become orthogonal with evenly
/// shared singular values, or, of `W_V` and `W_O`, with all of them on `W_O`'s side.
fn refactor(attn: &mut Attention) -> Result<()> {
    let (h, e) = (attn.n_heads, attn.d_head);
    let qkv = attn.qkv.weight.f_view([3, h, e, -1])?; // [qkv, head, d_head, d_model]
    let bias = match &attn.qkv.bias {
        Some(bias) => bias.f_view([3, h, e, 1])?,
        None => qkv.f_narrow(3, 0, 1)?.f_zeros_like()?,
    };
    // The biases are one more input, which is always one.
    let with_bias = Tensor::f_cat(&[&qkv, &bias], 3)?; // [qkv, head, d_head, d_model + 1]
    let (q, k) = (with_bias.f_select(0, 0)?.f_transpose(1, 2)?, with_bias.f_select(0, 1)?); // [head, d_model + 1, d_head] and back
    let qk = FactoredMatrix::new(&q, &k)?.make_even()?;
    let (q, k) = (qk.a().f_transpose(1, 2)?, qk.b()); // each [head, d_head, d_model + 1]
    let v = qkv.f_select(0, 2)?.f_transpose(1, 2)?; // [head, d_model, d_head]
    let o = attn.w_o()?; // [head, d_head, d_model]
    let ov = FactoredMatrix::new(&v, &o)?.svd()?;
    let d_model = qkv.size()[3];
    let weight =
        Tensor::f_stack(&[q.f_narrow(2, 0, d_model)?, k.f_narrow(2, 0, d_model)?, ov.u.f_transpose(1, 2)?], 0)?;
    attn.qkv.weight = weight.f_reshape([3 * h * e, d_model])?.into();
    let zeros = q.f_narrow(2, d_model, 1)?.f_zeros_like()?;
    let bias = Tensor::f_stack(&[q.f_narrow(2, d_model, 1)?, k.f_narrow(2, d_model, 1)?, zeros], 0)?;
    attn.qkv.bias = Some(bias.f_reshape(-1)?.into());
    attn.o.weight = ov.vh()?.f_mul(&ov.s.f_unsqueeze(2)?)?.f_flatten(0, 1)?.f_tr()?.f_contiguous()?.into();
    Ok(())
}
