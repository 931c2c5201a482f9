//! [`TokenLogProbs`]: how likely each token of a text was, and what was expected in its place.

use tch::{Kind, Tensor};

use super::color_scale::ColorScale;
use super::figure::{Draw, Figure};
use super::results::floats;
use super::token_strip::TokenStrip;
use super::top_tokens::TopTokens;
use crate::hooked_transformer::HookedTransformer;
use crate::text::input::Tokens;
use crate::{Error, Result};

/// How likely each token of a text was after those before it, and which tokens were likeliest there.
///
/// ```
/// use tch_lens::view::{Draw, TokenLogProbs};
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let tokens = model.to_tokens("When Mary and John went to the shop, John gave a bag to Mary")?;
/// let log_probs = TokenLogProbs::new(&model, &tokens, 0, &model.forward(tokens.clone())?, 5)?;
/// println!("{}", log_probs.figure()?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProbs {
    pub(super) tokens: Vec<String>,
    /// Of each token after the first: its log-probability, in nats.
    pub(super) log_probs: Vec<f32>,
    /// Of each token after the first: how many tokens were likelier.
    pub(super) ranks: Vec<i64>,
    /// What is likeliest after each token.
    pub(super) top: Vec<Vec<(String, f32)>>,
}

impl TokenLogProbs {
    /// From logits, `[batch, pos, d_vocab_out]`, that a model gave for these tokens: of one row of the batch, with the `k` likeliest
    /// tokens at each position. Padding is left out.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`]; [`Error::NoBatchRow`]; [`Error::Shape`] for logits of other positions.
    pub fn new(model: &HookedTransformer, tokens: &Tokens, row: usize, logits: &Tensor, k: usize) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let [n_rows, n_positions] = [tokens.ids.size()[0], tokens.ids.size()[1]];
        if row as i64 >= n_rows {
            return Err(Error::NoBatchRow { row: row as i64, held: format!("0 to {}", n_rows - 1) });
        }
        let size = logits.size();
        if size.len() != 3 || size[..2] != [n_rows, n_positions] {
            let expected = format!("[{n_rows}, {n_positions}, d_vocab_out], as the tokens");
            return Err(Error::Shape { what: "the logits".into(), found: size, expected });
        }
        let mut log_probs = logits.f_select(0, row as i64)?.f_log_softmax(-1, Kind::Float)?; // [pos, d_vocab_out]
        let mut ids = tokens.ids.f_select(0, row as i64)?; // [pos]
        if let Some(mask) = &tokens.mask {
            let real = mask.f_select(0, row as i64)?.f_nonzero()?.f_squeeze_dim(-1)?;
            ids = ids.f_index_select(0, &real)?;
            log_probs = log_probs.f_index_select(0, &real.f_to_device(log_probs.device())?)?;
        }
        let text = |id: i64| tokenizer.text_or_number(id);
        let (_, d_vocab_out) = log_probs.size2()?;
        let (values, places) = log_probs.f_topk((k as i64).min(d_vocab_out), -1, true, true)?; // [pos, k]
        let per_row = values.size()[1] as usize;
        let values = floats(&values)?;
        let places = Vec::<i64>::try_from(places.f_reshape(-1)?)?;
        let entries: Vec<(String, f32)> = places.into_iter().map(text).zip(values).collect();
        let n = ids.size()[0];
        let top = match per_row {
            0 => vec![Vec::new(); n as usize],
            per_row => entries.chunks(per_row).map(<[_]>::to_vec).collect(),
        };
        // Of token i + 1 after the tokens up to i.
        let before = log_probs.f_narrow(0, 0, (n - 1).max(0))?; // [pos - 1, d_vocab_out]
        let next = ids.f_narrow(0, n.min(1), (n - 1).max(0))?.f_to_device(log_probs.device())?.f_unsqueeze(-1)?;
        let of_next = before.f_gather(-1, &next, false)?; // [pos - 1, 1]
        let ranks = before.f_gt_tensor(&of_next)?.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64)?;
        Ok(TokenLogProbs {
            tokens: Vec::<i64>::try_from(ids)?.into_iter().map(text).collect(),
            log_probs: floats(&of_next)?,
            ranks: Vec::<i64>::try_from(ranks)?,
            top,
        })
    }

    /// Of each token after the first, its log-probability, in nats.
    pub fn log_probs(&self) -> &[f32] {
        &self.log_probs
    }

    /// Of each token after the first, how many tokens were likelier.
    pub fn ranks(&self) -> &[i64] {
        &self.ranks
    }
}

impl Draw for TokenLogProbs {
    /// Each token in the colour of its log-probability, with the tokens that were likeliest in its place; at the end, those that come
    /// next.
    fn figure(&self) -> Result<Figure> {
        let tokens = self.tokens.iter().cloned().chain(["… next".into()]);
        let none = [f32::NAN];
        let log_probs: Vec<f32> = none.into_iter().chain(self.log_probs.iter().copied()).chain(none).collect();
        let ranks: Vec<f32> = none.into_iter().chain(self.ranks.iter().map(|rank| *rank as f32)).chain(none).collect();
        let lowest = self.log_probs.iter().copied().filter(|p| p.is_finite()).fold(-5.0f32, f32::min);
        let lists: Vec<_> = std::iter::once(Vec::new()).chain(self.top.iter().cloned()).collect();
        let strip = TokenStrip::new(tokens, "log-probability", log_probs)?
            .color_scale(ColorScale::Sequential { low: f64::from(lowest), high: 0.0 })?
            .and("rank", ranks)?
            .top_tokens(TopTokens::new("log-probability", &lists))?;
        Ok(Figure::new("Token log-probabilities", strip).with_caption(
            "Each token is coloured by its log-probability, in nats, after the tokens before it. The list shows what was likeliest in its place.",
        ))
    }
}
