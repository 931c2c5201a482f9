//! [`Processor`]: which steps a model gets, and their use on its components.

use super::transforms::{center_outputs, center_rows, fold, fold_gain, fold_value_biases, refactor};
use super::{Processing, ProcessingOptions, Step};
use crate::config::{Activation, NormConfig, NormPosition, Normalization, PositionalEmbedding, Stack};
use crate::model::block::{Block, MlpOrExperts};
use crate::model::embed::Embed;
use crate::model::unembed::Unembed;
use crate::{Config, Result};

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
    pub(crate) fn new(options: ProcessingOptions, config: &Config) -> Self {
        let mut report = Vec::new();
        let of_two = config.stack != Stack::Blocks;
        let mut decide = |step, asked_for: bool, (possible, note): (bool, &'static str)| {
            let (possible, note) = match of_two {
                true => (false, "an encoder-decoder keeps its weights as they are, as in TransformerLens"),
                false => (possible, note),
            };
            let done = asked_for && possible;
            if asked_for {
                report.push(Processing { step, done, note });
            }
            done
        };
        let fold_ln = decide(Step::FoldLn, options.fold_ln, folds_norms(config));
        let center_writing =
            decide(Step::CenterWritingWeights, options.center_writing_weights, centers_writing_weights(config));
        let center_unembed = decide(Step::CenterUnembed, options.center_unembed, centers_unembed(config));
        let fold_value_biases = decide(Step::FoldValueBiases, options.fold_value_biases, folds_value_biases(config));
        let refactor = decide(
            Step::RefactorFactoredAttnMatrices,
            options.refactor_factored_attn_matrices,
            refactors_attention(config, fold_value_biases),
        );
        Processor { fold_ln, center_writing, center_unembed, fold_value_biases, refactor, report }
    }

    pub(crate) fn report(self) -> Vec<Processing> {
        self.report
    }

    /// The norms of the processed model.
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
        if !self.center_writing {
            return Ok(());
        }
        match &embed.project {
            Some(project) => center_outputs(project),
            None => [Some(&embed.w_e), embed.w_pos.as_ref(), embed.w_token_type.as_ref()]
                .into_iter()
                .flatten()
                .try_for_each(|table| center_rows(table)),
        }
    }

    pub(crate) fn block(&self, block: &mut Block) -> Result<()> {
        if self.fold_ln && block.norm_position != NormPosition::After {
            fold(&mut block.ln1, block.attn.readers_mut())?;
            if let Some(mlp) = &mut block.mlp {
                fold(&mut block.ln2, mlp.readers_mut())?;
                if let MlpOrExperts::Experts(mixture) = mlp {
                    for (gain, readers) in mixture.gains_mut() {
                        fold_gain(gain, readers)?;
                    }
                }
            }
        }
        if self.fold_ln
            && let Some(MlpOrExperts::Mlp(mlp)) = &mut block.mlp
            && mlp.act.function == Activation::SoluLn
            && let Some(ln) = &mut mlp.ln
        {
            fold(ln, vec![&mut mlp.w_out])?;
        }
        if self.center_writing {
            center_outputs(&block.attn.o)?;
            for writer in block.mlp.iter().flat_map(MlpOrExperts::writers) {
                center_outputs(writer)?;
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
        let Some(u) = &mut unembed.u else { return Ok(()) };
        if self.fold_ln {
            match &mut unembed.head {
                None => fold(&mut unembed.ln_final, vec![u])?,
                Some(head) => {
                    fold(&mut unembed.ln_final, vec![&mut head.dense])?;
                    fold(&mut head.norm, vec![u])?;
                }
            }
        }
        if self.center_unembed {
            center_outputs(u)?;
        }
        Ok(())
    }
}

/// Whether a step keeps a model's log-probabilities, and which of its parts are left out or done differently, with the reason.
type Decision = (bool, &'static str);

fn folds_norms(config: &Config) -> Decision {
    let kind = config.normalization_type();
    match config.norm_position() {
        _ if kind == Normalization::None => (false, "there are no norms"),
        _ if is_shortformer(config) => (false, "queries and keys read positions past the norm"),
        NormPosition::InStream => {
            (false, "the stream itself is normalised, and what reads it reads the last norm of many")
        }
        NormPosition::After => (true, "of the last norm; those after a sublayer stay, as nothing linear reads them"),
        NormPosition::BeforeAndAfter => (true, "those after a sublayer stay, as nothing linear reads them"),
        NormPosition::Before if config.gated_mlp() && kind.centers() => {
            (true, "a norm's bias goes into the gates' and the linear part's own biases")
        }
        NormPosition::Before => (true, ""),
    }
}

fn centers_writing_weights(config: &Config) -> Decision {
    match (config.normalization_type().centers(), config.norms.last().centers()) {
        _ if is_shortformer(config) => (false, "queries and keys read positions past the norm"),
        _ if config.norm_position() == NormPosition::InStream => (false, "the stream is read as it is"),
        (true, true) => (true, ""),
        (true, false) => (false, "the last norm does not take the mean off"),
        (false, _) => (false, "the norms do not take the mean off"),
    }
}

fn centers_unembed(config: &Config) -> Decision {
    match config.output_logits_soft_cap {
        None => (true, ""),
        Some(_) => (false, "the logits' cap depends on their mean"),
    }
}

fn folds_value_biases(config: &Config) -> Decision {
    match (config.use_attention_sinks(), config.clip_qkv(), config.attention.z_norm) {
        _ if config.attention.gate.is_some() => (false, "values pass through gates"),
        _ if config.attention.experts.is_some() => (false, "a router chooses what writes them"),
        _ if config.attention.latent.is_some() => (false, "values are made from a latent, without a bias"),
        _ if config.attention.dynamic_mask.is_some() => (false, "values with their bias make the mask"),
        _ if config.attention.value_norm.is_some() => (false, "values are normalised after their bias"),
        _ if config.attention.shared_keys.values().iter().any(Option::is_some) => {
            (false, "several layers look at the same values")
        }
        (true, ..) => (false, "with attention sinks a pattern's rows do not sum to one"),
        (_, Some(_), _) => (false, "values are clamped after their bias"),
        (.., Some(_)) => (false, "a norm stands between values and W_O"),
        _ if config.attention.differential => {
            (false, "what the second head of a pair mixes is taken from what the first does")
        }
        (false, None, None) => (true, ""),
    }
}

fn refactors_attention(config: &Config, value_biases_are_folded: bool) -> Decision {
    if config.rotary().is_some() || config.qk_norm().is_some() {
        (false, "what happens between W_Q and W_K is not linear")
    } else if config.attention.disentangled.is_some() {
        (false, "queries and keys are compared with distances as well")
    } else if config.attention.experts.is_some() {
        (false, "a router chooses the heads")
    } else if config.attention.latent.is_some() {
        (false, "queries, keys and values are made from latents")
    } else if config.attention.heads.values().iter().any(Option::is_some) {
        (false, "layers differ in their heads")
    } else if config.attention.shared_keys.values().iter().any(Option::is_some) {
        (false, "several layers look at the same keys")
    } else if config.d_value() != config.d_head {
        (false, "values have another width than keys")
    } else if config.n_key_value_heads != config.n_heads {
        (false, "heads share their keys and values")
    } else if config.attention.differential {
        (false, "W_O reads the difference of two heads")
    } else if config.attention.z_norm.is_some() {
        (false, "a norm stands between W_V and W_O")
    } else if config.clip_qkv().is_some() {
        (false, "queries, keys and values are clamped")
    } else if !value_biases_are_folded {
        (false, "it needs fold_value_biases")
    } else {
        (true, "")
    }
}

fn is_shortformer(config: &Config) -> bool {
    config.positional_embedding_type() == PositionalEmbedding::Shortformer
}
