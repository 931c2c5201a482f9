//! [`detect_head`]: which heads have a given attention pattern.

use tch::{Device, Kind, Tensor};

use crate::hooked_transformer::{HookedTransformer, ReturnType, RunOptions};
use crate::tensor::precision::widened;
use crate::tensor::scalar::{full, Scalar};
use crate::text::input::Input;
use crate::{Error, Layer, Result};

/// The attention pattern that is looked for: TransformerLens' `detection_pattern`.
#[derive(Debug)]
pub enum HeadPattern {
    /// From each token to the one before it: `previous_token_head`.
    PreviousToken,
    /// From each token to its earlier occurrences: `duplicate_token_head`.
    DuplicateToken,
    /// From each token to what followed its earlier occurrences: `induction_head`.
    Induction,
    /// A pattern of the caller's, `[query, key]`, lower triangular.
    Custom(Tensor),
}

/// How patterns are compared: TransformerLens' `error_measure`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorMeasure {
    /// The share of the attention that falls on the pattern: `Σ (attention · pattern) / Σ attention`. The pattern is of zeros and ones.
    #[default]
    Mul,
    /// One minus the mean over queries of `Σ |attention − pattern|` over keys: 1 for an equal pattern, −1 for one that is elsewhere.
    Abs,
}

/// The settings of [`detect_head`].
#[derive(Clone, Debug, Default)]
pub struct DetectHeadOptions {
    heads: Option<Vec<(Layer, usize)>>,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
}

impl DetectHeadOptions {
    /// All heads, all attention, [`ErrorMeasure::Mul`].
    pub fn new() -> Self {
        DetectHeadOptions::default()
    }

    /// Only these heads, as layer and head; the score of the others is −1.
    pub fn heads<L: Into<Layer>>(mut self, heads: impl IntoIterator<Item = (L, usize)>) -> Self {
        self.heads = Some(heads.into_iter().map(|(layer, head)| (layer.into(), head)).collect());
        self
    }

    /// Leaves out the attention to the first token.
    pub fn exclude_bos(mut self, exclude: bool) -> Self {
        self.exclude_bos = exclude;
        self
    }

    /// Leaves out the attention of each token to itself.
    pub fn exclude_current_token(mut self, exclude: bool) -> Self {
        self.exclude_current_token = exclude;
        self
    }

    /// How patterns are compared.
    pub fn error_measure(mut self, measure: ErrorMeasure) -> Self {
        self.error_measure = measure;
        self
    }
}

/// How much the attention of each head is that of a pattern: `[layer, head]`. Of several texts, the mean of their scores.
///
/// TransformerLens rounds the scores of [`ErrorMeasure::Abs`] to three digits; these are not rounded. A head all of whose attention is
/// left out has the score 0 by [`ErrorMeasure::Mul`].
///
/// ```
/// use tch_lens::heads::{detect_head, DetectHeadOptions, HeadPattern};
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let text = " river green dog Paris table river green dog Paris table";
/// let scores = detect_head(&model, text, &HeadPattern::Induction, DetectHeadOptions::new())?;
/// assert_eq!(scores.size(), [4, 4]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`HookedTransformer::run`]; [`Error::WrongInput`] for a text of one token; [`Error::Shape`] and [`Error::WrongInput`] for a pattern
/// that is not square and lower triangular; [`Error::LayerOutOfRange`] and [`Error::SliceOutOfRange`] for heads.
pub fn detect_head(
    model: &HookedTransformer,
    seq: impl Into<Input>,
    detection_pattern: &HeadPattern,
    options: DetectHeadOptions,
) -> Result<Tensor> {
    let rows = model.to_tokens(seq)?.rows()?;
    let scores = rows.iter().map(|ids| of_row(model, ids, detection_pattern, &options));
    let scores = Tensor::f_stack(&scores.collect::<Result<Vec<_>>>()?, 0)?; // [row, layer, head]
    Ok(scores.f_mean_dim([0i64].as_slice(), false, None)?)
}

/// The scores on one row of tokens: `[layer, head]`.
fn of_row(model: &HookedTransformer, ids: &[i64], wanted: &HeadPattern, options: &DetectHeadOptions) -> Result<Tensor> {
    let DetectHeadOptions { heads, exclude_bos, exclude_current_token, error_measure } = options;
    if ids.len() < 2 {
        return Err(Error::wrong_input(
            "heads are detected by how tokens look at others: give a text of two tokens or more",
        ));
    }
    let pattern = detection_pattern(wanted, ids)?; // [query, key]
    let run = RunOptions::new().cache("pattern").return_type(ReturnType::None);
    let cache = model.run(ids.to_vec(), run)?.cache;
    let attention = widened(&cache.stack_activation("pattern", None)?.f_select(1, 0)?)?; // [layer, head, query, key]
    let pattern = pattern.f_to_device(attention.device())?.f_to_kind(attention.f_kind()?)?;
    // What counts: [query, key]
    let counted = Tensor::f_ones_like(&pattern)?;
    if *exclude_bos {
        let _ = counted.f_select(1, 0)?.f_zero_()?;
    }
    if *exclude_current_token {
        let _ = counted.f_diagonal(0, 0, 1)?.f_zero_()?;
    }
    let sum = |x: Tensor| Ok::<_, Error>(x.f_sum_dim_intlist([-2i64, -1].as_slice(), false, None)?);
    let scores = match error_measure {
        ErrorMeasure::Mul => {
            let attention = attention.f_mul(&counted)?;
            let total = sum(attention.shallow_clone())?;
            let on_pattern = sum(attention.f_mul(&pattern)?)?;
            on_pattern.f_div(&total.fill_where(&total.f_logical_not()?, 1.0)?)?
        }
        ErrorMeasure::Abs => {
            let difference = attention.f_sub(&pattern)?.f_abs()?.f_mul(&counted)?;
            sum(difference)?.div_number(-(ids.len() as f64))?.add_number(1.0)?
        }
    };
    let Some(heads) = heads else { return Ok(scores) };
    let n_layers = model.config().n_layers;
    let chosen = full(&scores.size(), -1.0, (scores.f_kind()?, scores.device()))?;
    for (layer, head) in heads {
        let layer = layer.resolve(n_layers)?;
        let n_heads = model.config().heads(layer).query;
        if *head >= n_heads {
            return Err(Error::SliceOutOfRange { slice: format!("index {head}"), axis: "head", len: n_heads as i64 });
        }
        let of = |x: &Tensor| x.f_select(0, layer as i64)?.f_select(0, *head as i64);
        of(&chosen)?.f_copy_(&of(&scores)?)?;
    }
    Ok(chosen)
}

/// The pattern on some tokens: `[query, key]`.
fn detection_pattern(wanted: &HeadPattern, ids: &[i64]) -> Result<Tensor> {
    let n = ids.len();
    let holds: Box<dyn Fn(usize, usize) -> bool> = match wanted {
        HeadPattern::PreviousToken => Box::new(|query, key| key + 1 == query),
        HeadPattern::DuplicateToken => Box::new(|query, key| key < query && ids[key] == ids[query]),
        // A token does not follow itself, so that the key comes after an earlier occurrence.
        HeadPattern::Induction => {
            Box::new(|query, key| (1..=query).contains(&key) && key - 1 != query && ids[key - 1] == ids[query])
        }
        HeadPattern::Custom(pattern) => {
            let found = if pattern.defined() { pattern.size() } else { Vec::new() };
            if found != [n as i64, n as i64] {
                let expected = format!("[{n}, {n}], a query and a key for each token");
                return Err(Error::Shape { what: "the detection pattern".into(), found, expected });
            }
            let pattern = pattern.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            if !pattern.f_equal(&pattern.f_tril(0)?)? {
                return Err(Error::wrong_input(
                    "the detection pattern must be lower triangular: no token looks at a later one",
                ));
            }
            return Ok(pattern);
        }
    };
    let entries: Vec<f32> = (0..n)
        .flat_map(|query| (0..n).map(move |key| (query, key)))
        .map(|(query, key)| f32::from(u8::from(holds(query, key))))
        .collect();
    Ok(Tensor::f_from_slice(&entries)?.f_view([n as i64, n as i64])?)
}
