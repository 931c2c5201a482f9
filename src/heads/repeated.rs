//! Scores of heads on repeated random tokens.

use tch::Tensor;

use crate::hooked_transformer::{HookedTransformer, ReturnType, RunOptions};
use crate::tensor::precision::widened;
use crate::tensor::split_mix::SplitMix64;
use crate::{Error, Result};

/// Random tokens that are repeated: sequences whose repetitions can be continued only by looking back.
///
/// A row is the BOS token, where the tokenizer has one, and the same `len` tokens `times` times. Tokens are drawn evenly from the
/// vocabulary, each once, by the seed alone.
#[derive(Clone, Debug)]
pub struct RepeatedTokens {
    len: usize,
    times: usize,
    rows: usize,
    seed: u64,
    among: Option<Vec<i64>>,
}

impl Default for RepeatedTokens {
    fn default() -> Self {
        RepeatedTokens { len: 25, times: 2, rows: 4, seed: 0, among: None }
    }
}

impl RepeatedTokens {
    /// Four rows of 25 tokens, each twice.
    pub fn new() -> Self {
        RepeatedTokens::default()
    }

    /// How many tokens are repeated.
    pub fn len(mut self, len: usize) -> Self {
        self.len = len;
        self
    }

    /// How often they stand in a row.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// How many rows there are.
    pub fn rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// The seed of the tokens.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Draws from these tokens instead of the whole vocabulary: a small model continues only words that it knows from its training.
    pub fn among(mut self, ids: impl Into<Vec<i64>>) -> Self {
        self.among = Some(ids.into());
        self
    }

    /// The rows of tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for lengths that repeat nothing; [`Error::TokenOutOfRange`].
    pub fn tokens(&self, model: &HookedTransformer) -> Result<Vec<Vec<i64>>> {
        Ok(self.drawn(model)?.0)
    }

    /// The rows of tokens, and how many of each come before those that are repeated.
    fn drawn(&self, model: &HookedTransformer) -> Result<(Vec<Vec<i64>>, usize)> {
        let RepeatedTokens { len, times, rows, seed, among } = self.clone();
        let d_vocab = model.config().d_vocab;
        for (name, value, least) in [("len", len, 2), ("times", times, 2), ("rows", rows, 1)] {
            if value < least {
                return Err(Error::option_value(name, value, format!("repeated tokens need at least {least}")));
            }
        }
        let bos = model.tokenizer().ok().and_then(|tokenizer| tokenizer.bos_id());
        let mut ids = among.unwrap_or_else(|| (0..d_vocab as i64).collect());
        ids.sort_unstable();
        ids.dedup();
        if let Some(id) = ids.iter().copied().find(|id| !(0..d_vocab as i64).contains(id)) {
            return Err(Error::TokenOutOfRange { id, d_vocab });
        }
        ids.retain(|id| Some(*id) != bos);
        let most = ids.len();
        if len > most {
            return Err(Error::option_value("len", len, format!("there are only {most} tokens to repeat")));
        }
        let row = |row: usize| {
            let mut generator = SplitMix64::new([seed, row as u64]);
            let mut drawn: Vec<i64> = Vec::with_capacity(len);
            while drawn.len() < len {
                let id = ids[(generator.next_bits() % most as u64) as usize];
                // Each token once, so that what follows it is known.
                if !drawn.contains(&id) {
                    drawn.push(id);
                }
            }
            bos.into_iter().chain(drawn.repeat(times)).collect()
        };
        Ok(((0..rows).map(row).collect(), usize::from(bos.is_some())))
    }
}

/// The induction score of each head: `[layer, head]`, from 0 to 1.
///
/// On repeated random tokens, it is the mean attention from each token of the repetitions to the token after its previous occurrence
/// (Olsson et al. 2022, "In-context Learning and Induction Heads").
///
/// ```
/// use tch_lens::heads::{induction_scores, RepeatedTokens};
/// let model = tch_lens::HookedTransformer::toy()?;
/// let words = [" river", " green", " dog", " Paris", " table", " apple", " shop", " bag"];
/// let words = words.map(|word| model.to_single_token(word)).into_iter().collect::<Result<Vec<_>, _>>()?;
/// let scores = induction_scores(&model, RepeatedTokens::new().len(6).among(words))?;
/// assert!(scores.max().double_value(&[]) > 0.5);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Setting`] for lengths that repeat nothing; [`Error::PromptTooLong`].
pub fn induction_scores(model: &HookedTransformer, tokens: RepeatedTokens) -> Result<Tensor> {
    let (rows, bos) = tokens.drawn(model)?;
    let len = (rows[0].len() - bos) / tokens.times;
    let on = |query: usize, key: usize| query >= bos + len && key + len == query + 1;
    mean_attention(model, rows, bos + len, on)
}

/// The prefix-matching score of each head: `[layer, head]`, from 0 to 1.
///
/// On repeated random tokens, it is the mean attention from each token of the repetitions to all tokens that follow earlier
/// occurrences of it (Olsson et al. 2022). With tokens that stand twice it is the [induction score](induction_scores).
///
/// # Errors
///
/// Those of [`induction_scores`].
pub fn prefix_matching_scores(model: &HookedTransformer, tokens: RepeatedTokens) -> Result<Tensor> {
    let (rows, bos) = tokens.drawn(model)?;
    let len = (rows[0].len() - bos) / tokens.times;
    let on = |query: usize, key: usize| key > bos && key <= query && (query + 1 - key).is_multiple_of(len);
    mean_attention(model, rows, bos + len, on)
}

/// The mean over rows and over queries from `first` on of the attention to the keys for which `on` holds: `[layer, head]`.
fn mean_attention(
    model: &HookedTransformer,
    rows: Vec<Vec<i64>>,
    first: usize,
    on: impl Fn(usize, usize) -> bool,
) -> Result<Tensor> {
    let n = rows[0].len();
    let run = RunOptions::new().cache("pattern").return_type(ReturnType::None);
    let cache = model.run(rows, run)?.cache;
    let attention = widened(&cache.stack_activation("pattern", None)?)?; // [layer, batch, head, query, key]
    let wanted: Vec<bool> =
        (first..n).flat_map(|query| (0..n).map(move |key| (query, key))).map(|(q, k)| on(q, k)).collect();
    let wanted =
        Tensor::f_from_slice(&wanted)?.f_view([(n - first) as i64, n as i64])?.f_to_device(attention.device())?;
    let late = attention.f_narrow(3, first as i64, (n - first) as i64)?;
    let sum = late.f_mul(&wanted)?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?; // [layer, batch, head, query]
    Ok(sum.f_mean_dim([1i64, 3].as_slice(), false, None)?)
}
