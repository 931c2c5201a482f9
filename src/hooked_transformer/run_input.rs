//! [`RunInput`]: what a run is given, checked.

use tch::{Device, Kind, Tensor};

use super::run_options::refused;
use super::HookedTransformer;
use crate::tensor::scalar::full;
use crate::text::input::{Input, TokenOptions, Tokens};
use crate::text::tokenizer::{Bos, PaddingSide};
use crate::{Error, Result};

/// What a run is given.
pub(super) struct RunInput {
    /// The ids are −1 where a stream is of unknown tokens.
    pub(super) tokens: Tokens,
    /// What the run starts from, if not from tokens, on the model's device: `[batch, pos, d_model]`.
    pub(super) stream: Option<Tensor>,
}

impl HookedTransformer {
    /// Tokens that come behind `past` positions.
    pub(super) fn token_input(&self, input: Input, bos: Bos, side: PaddingSide, past: usize) -> Result<RunInput> {
        if bos == Bos::Yes && !matches!(input, Input::Texts(_)) {
            let why = "the input is token ids, which are taken as they are: put the BOS token's id first";
            return Err(refused("prepend_bos", why));
        }
        let tokens = self.to_tokens_with(input, TokenOptions::new().prepend_bos(bos).padding_side(side))?;
        tokens.check(self.config(), past)?;
        tokens.check_ids(self.config())?;
        Ok(RunInput { tokens, stream: None })
    }

    /// A stream, or embeddings, of these tokens that come behind `past` positions.
    pub(super) fn stream_input(&self, input: Input, tokens: Option<Tokens>, past: usize) -> Result<RunInput> {
        let d_model = self.config().d_model as i64;
        let Input::Tensor(stream) = input else {
            let why = format!(
                "the run starts from embeddings or from a layer, so its input is a tensor of the stream there, [batch, pos, {d_model}]"
            );
            return Err(Error::wrong_input(why));
        };
        let stream = if stream.defined() && stream.dim() == 2 { stream.f_unsqueeze(0)? } else { stream };
        let size = if stream.defined() { stream.size() } else { Vec::new() };
        let [batch, pos, width] = size[..] else { return Err(wrong_stream(size, d_model)) };
        if width != d_model {
            return Err(wrong_stream(size, d_model));
        }
        let (found, expected) = (stream.f_kind()?, self.kind());
        if found != expected {
            let why =
                format!("the stream that the run starts from is {found:?}, and the model {expected:?}: convert it");
            return Err(Error::wrong_input(why));
        }
        let tokens = match tokens {
            Some(tokens) if tokens.ids.size() == [batch, pos] => {
                tokens.check_ids(self.config())?;
                tokens
            }
            Some(tokens) => {
                let expected = format!("[{batch}, {pos}], as the stream");
                return Err(Error::Shape { what: "the tokens' tensor".into(), found: tokens.ids.size(), expected });
            }
            None if self.config().stream.layer_embedding.is_some() => {
                let why = "layers add an embedding of each token: give the tokens of the stream with `tokens`";
                return Err(Error::setting("tokens", why));
            }
            None => Tokens { ids: full(&[batch, pos], -1.0, (Kind::Int64, Device::Cpu))?, mask: None, types: None },
        };
        tokens.check(self.config(), past)?;
        Ok(RunInput { tokens, stream: Some(stream.f_to_device(self.device())?) })
    }
}

fn wrong_stream(found: Vec<i64>, d_model: i64) -> Error {
    let expected = format!("[batch, pos, {d_model}] or [pos, {d_model}]");
    Error::Shape { what: "the stream that the run starts from".into(), found, expected }
}
