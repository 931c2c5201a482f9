//! Norms.

use super::{between, FP32};
use crate::config::{Activation, Config, EmbedConfig, HeadConfig, NormConfig, NormPosition, Normalization};
use crate::{Error, Result};

impl Config {
    pub(super) fn validate_norms(&self) -> Result<()> {
        between("norms.eps", self.norms.eps, [FP32[0], 1.0])?;
        between("norms.last_eps", self.norms.last_eps(), [FP32[0], 1.0])?;
        if self.norms.bare_first_attention
            && (self.norms.kind == Normalization::None
                || !matches!(self.norms.position, NormPosition::Before | NormPosition::BeforeAndAfter))
        {
            return Err(Error::field("norms.bare_first_attention", true, "no attention reads through a norm"));
        }
        if self.norms.position == NormPosition::InStream && self.norms.kind == Normalization::None {
            return Err(Error::field(
                "norms.position",
                "InStream",
                "there are no norms that could stand in the stream",
            ));
        }
        if let Some(HeadConfig { activation: activation @ (Activation::SoluLn | Activation::Xielu), .. }) = self.head {
            return Err(Error::field("head.activation", format!("{activation:?}"), "it belongs to an MLP"));
        }
        if self.head.is_some_and(|head| head.norm) && self.norms.kind == Normalization::None {
            return Err(Error::field("head.norm", true, "it has the kind of the others, and there are none"));
        }
        if self.norms.after_mixtures && (self.norms.position != NormPosition::Before || self.experts().is_none()) {
            let why = "mixtures have one where norms stand after the sublayers, and other MLPs have none";
            return Err(Error::field("norms.after_mixtures", true, why));
        }
        let NormConfig { after_embedding, after_full_embed, .. } = self.norms;
        for (field, has) in [("norms.after_embedding", after_embedding), ("norms.after_full_embed", after_full_embed)] {
            if has && self.norms.kind == Normalization::None {
                return Err(Error::field(field, true, "it has the kind of the others, and there are none"));
            }
        }
        if after_embedding && after_full_embed {
            return Err(Error::field(
                "norms.after_full_embed",
                true,
                "the embedding has one norm: `after_embedding` is set",
            ));
        }
        let EmbedConfig { token_types, task_types, token_dropout, .. } = self.embed;
        if task_types > 0 && token_types == 0 {
            return Err(Error::field(
                "embed.task_types",
                task_types,
                "they are added to the types of tokens, and there are none",
            ));
        }
        if let Some(token) = token_dropout.filter(|token| *token >= self.d_vocab) {
            let why = format!("it must be a token, less than d_vocab, {}", self.d_vocab);
            return Err(Error::field("embed.token_dropout", token, &why));
        }
        if after_embedding && self.embed.width.is_some() {
            return Err(Error::field(
                "norms.after_embedding",
                true,
                "with `embed.width`, the norm is `after_full_embed`",
            ));
        }
        Ok(())
    }
}
