//! [`Input`]: what a model can be run on, and the tokens that it makes of it.

use tch::{Device, Kind, Tensor};

use crate::text::tokenizer::{Bos, PaddingSide, Tokenizer};
use crate::{Config, Error, Result, TokenizerError};

/// What a model can be run on: a text, texts, token ids, or a tensor of them.
///
/// Made from `&str`, `String`, `&[&str]`, `Vec<String>`, `&[i64]`, `Vec<i64>`, `Vec<Vec<i64>>`, `Tensor` (`[pos]` or
/// `[batch, pos]`), or [`Tokens`]. Texts get the BOS token as the model's default says; ids stay as they are.
#[derive(Debug)]
pub enum Input {
    /// Texts, one a batch row.
    Texts(Vec<String>),
    /// Token ids, one list a batch row.
    Ids(Vec<Vec<i64>>),
    /// Token ids: `[pos]` or `[batch, pos]`.
    Tensor(Tensor),
    /// Tokens that are ready.
    Tokens(Tokens),
}

/// A batch of tokens.
///
/// Where rows had different lengths, the shorter ones are padded, and `mask` says which tokens are real. A padded row
/// gets what it would get alone: padding is never looked at, and positions are counted from the first real token.
#[derive(Debug)]
pub struct Tokens {
    /// Token ids: `[batch, pos]`, int64.
    pub ids: Tensor,
    /// Which tokens are real: `[batch, pos]`, bool; absent where all are.
    pub mask: Option<Tensor>,
    /// The type of each token, for models whose tokens have types (BERT's segments): `[batch, pos]`, int64; absent where all have the
    /// first type, 0. TransformerLens' `token_type_ids`.
    pub types: Option<Tensor>,
}

impl Clone for Tokens {
    fn clone(&self) -> Self {
        let handle = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Tokens { ids: self.ids.shallow_clone(), mask: handle(&self.mask), types: handle(&self.types) }
    }
}

impl Tokens {
    /// Tokens of which all are real, from ids of `[pos]` or `[batch, pos]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for ids of other shapes or kinds.
    pub fn new(ids: &Tensor) -> Result<Self> {
        if !ids.defined() {
            return Err(Error::EmptyPrompt);
        }
        let whole = matches!(ids.f_kind()?, Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8);
        let ids = match ids.dim() {
            1 if whole => ids.f_unsqueeze(0)?,
            2 if whole => ids.shallow_clone(),
            _ => {
                return Err(Error::Shape {
                    what: "the tokens' tensor".into(),
                    found: ids.size(),
                    expected: "whole numbers, [pos] or [batch, pos]".into(),
                })
            }
        };
        Ok(Tokens { ids: ids.f_to_kind(Kind::Int64)?, mask: None, types: None })
    }

    /// The same tokens with these types: `[batch, pos]`, or `[pos]` for one row.
    ///
    /// ```
    /// use tch_lens::Tokens;
    /// use tch::Tensor;
    /// let tokens = Tokens::new(&Tensor::from_slice(&[2i64, 5, 3, 6, 3]))?;
    /// let pair = tokens.with_types(&Tensor::from_slice(&[0i64, 0, 0, 1, 1]))?;
    /// assert_eq!(pair.types.unwrap().size(), [1, 5]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for types of other shapes or kinds than the ids.
    pub fn with_types(mut self, types: &Tensor) -> Result<Self> {
        let types = Tokens::new(types)?.ids;
        if types.size() != self.ids.size() {
            let expected = format!("{:?}, as the ids", self.ids.size());
            return Err(Error::Shape { what: "the tokens' types".into(), found: types.size(), expected });
        }
        self.types = Some(types);
        Ok(self)
    }

    /// The same tokens with this mask, which is 1 or true where a token is real: `[batch, pos]`, or `[pos]` for one row. TransformerLens'
    /// `one_zero_attention_mask`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a mask of another shape than the ids.
    pub fn with_mask(mut self, mask: &Tensor) -> Result<Self> {
        let mask = if mask.defined() && mask.dim() == 1 { mask.f_unsqueeze(0)? } else { mask.shallow_clone() };
        if !mask.defined() || mask.size() != self.ids.size() {
            let found = if mask.defined() { mask.size() } else { Vec::new() };
            let expected = format!("{:?}, as the ids", self.ids.size());
            return Err(Error::Shape { what: "the tokens' mask".into(), found, expected });
        }
        self.mask = Some(mask.f_to_kind(Kind::Bool)?);
        Ok(self)
    }

    /// The same tokens with every tensor of `[batch, pos]` changed.
    pub(crate) fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let optional = |tensor: &Option<Tensor>| tensor.as_ref().map(&change).transpose();
        Ok(Tokens { ids: change(&self.ids)?, mask: optional(&self.mask)?, types: optional(&self.types)? })
    }

    /// A batch of rows of any lengths, the shorter ones padded with `pad` on `side`.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`] where a row, or the batch, is empty.
    pub fn padded(rows: &[Vec<i64>], pad: i64, side: PaddingSide) -> Result<Self> {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        if rows.iter().any(Vec::is_empty) || longest == 0 {
            return Err(Error::EmptyPrompt);
        }
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for row in rows {
            let missing = longest - row.len();
            let padding = || std::iter::repeat_n(pad, missing);
            match side {
                PaddingSide::Right => ids.extend(row.iter().copied().chain(padding())),
                PaddingSide::Left => ids.extend(padding().chain(row.iter().copied())),
            }
            let real = (0..longest).map(|i| match side {
                PaddingSide::Right => i < row.len(),
                PaddingSide::Left => i >= missing,
            });
            mask.extend(real);
        }
        let shape = [rows.len() as i64, longest as i64];
        let uneven = mask.contains(&false);
        Ok(Tokens {
            ids: Tensor::f_from_slice(&ids)?.f_view(shape)?,
            mask: if uneven { Some(Tensor::f_from_slice(&mask)?.f_view(shape)?) } else { None },
            types: None,
        })
    }

    /// The ids of each row, without padding.
    ///
    /// ```
    /// use tch_lens::{PaddingSide, Tokens};
    /// let tokens = Tokens::padded(&[vec![5, 6, 7], vec![8]], 0, PaddingSide::Left)?;
    /// assert_eq!(tokens.rows()?, [vec![5, 6, 7], vec![8]]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where the fields do not fit together.
    pub fn rows(&self) -> Result<Vec<Vec<i64>>> {
        let shape = |what: &str, found: &Tensor, expected: String| Error::Shape {
            what: format!("the tokens' {what}"),
            found: found.size(),
            expected,
        };
        if self.ids.dim() != 2 {
            return Err(shape("tensor", &self.ids, "[batch, pos]".into()));
        }
        let mut rows = Vec::<Vec<i64>>::try_from(self.ids.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?)?;
        if let Some(mask) = &self.mask {
            if mask.size() != self.ids.size() {
                return Err(shape("mask", mask, format!("bools, {:?}", self.ids.size())));
            }
            let mask = Vec::<Vec<bool>>::try_from(mask.f_to_device(Device::Cpu)?.f_to_kind(Kind::Bool)?)?;
            for (row, mask) in rows.iter_mut().zip(mask) {
                let mut real = mask.into_iter();
                row.retain(|_| real.next().unwrap_or(false));
            }
        }
        Ok(rows)
    }

    /// The first `n_ctx` tokens of each row; nothing changes where all fit.
    pub(crate) fn truncated(self, n_ctx: usize, pad: i64, side: PaddingSide) -> Result<Self> {
        if self.ids.size().last().is_none_or(|&len| len <= n_ctx as i64) {
            return Ok(self);
        }
        let cut = |tokens: &Tokens, pad: i64| -> Result<Tokens> {
            let mut rows = tokens.rows()?;
            rows.iter_mut().for_each(|row| row.truncate(n_ctx));
            Tokens::padded(&rows, pad, side)
        };
        let Tokens { mask, types, .. } = &self;
        let of_types = |types: &Tensor| Tokens {
            ids: types.shallow_clone(),
            mask: mask.as_ref().map(Tensor::shallow_clone),
            types: None,
        };
        let types = types.as_ref().map(|types| Ok::<_, Error>(cut(&of_types(types), 0)?.ids)).transpose()?;
        Ok(Tokens { types, ..cut(&self, pad)? })
    }

    /// Checks the shapes: not empty, not too long behind `past` positions.
    pub(crate) fn check(&self, config: &Config, past: usize) -> Result<()> {
        let size = self.ids.size();
        if size.len() != 2 || self.ids.f_kind()? != Kind::Int64 {
            return Err(Error::Shape {
                what: "the tokens' tensor".into(),
                found: size,
                expected: "int64, [batch, pos]".into(),
            });
        }
        if size[0] == 0 || size[1] == 0 {
            return Err(Error::EmptyPrompt);
        }
        let tokens = past.saturating_add(size[1] as usize);
        if tokens > config.n_ctx {
            return Err(Error::PromptTooLong { tokens, n_ctx: config.n_ctx });
        }
        if let Some(mask) = &self.mask
            && (mask.size() != size || mask.f_kind()? != Kind::Bool)
        {
            return Err(Error::Shape {
                what: "the tokens' mask".into(),
                found: mask.size(),
                expected: format!("bools, {size:?}"),
            });
        }
        match &self.types {
            None => Ok(()),
            Some(_) if config.embed.token_types == 0 => Err(Error::wrong_input(
                "the tokens have types, but this model has no embeddings of types: leave them out",
            )),
            Some(types) if types.size() != size || types.f_kind()? != Kind::Int64 => Err(Error::Shape {
                what: "the tokens' types".into(),
                found: types.size(),
                expected: format!("int64, {size:?}"),
            }),
            Some(types) => within(types, config.embed.token_types, |id, n| {
                Error::wrong_input(format!("the tokens have type {id}, but this model has types 0 to {}", n - 1))
            }),
        }
    }

    /// Checks that no id is outside the vocabulary. Of ids on another device, two numbers are copied from it once: libtorch would
    /// not return an error there, but end the device's work for the whole process.
    pub(crate) fn check_ids(&self, config: &Config) -> Result<()> {
        within(&self.ids, config.d_vocab, |id, d_vocab| Error::TokenOutOfRange { id, d_vocab })
    }

    pub(crate) fn to_device(&self, device: Device) -> Result<Self> {
        self.map(|tensor| Ok(tensor.f_to_device(device)?))
    }
}

/// Checks that all numbers are below `count` and none negative.
fn within(numbers: &Tensor, count: usize, error: impl Fn(i64, usize) -> Error) -> Result<()> {
    let (least, most) = numbers.f_aminmax(None, false)?;
    let found = Vec::<i64>::try_from(Tensor::f_stack(&[least, most], 0)?)?;
    match found.into_iter().find(|number| !(0..count as i64).contains(number)) {
        Some(number) => Err(error(number, count)),
        None => Ok(()),
    }
}

/// How texts become tokens.
///
/// ```
/// use tch_lens::{Bos, HookedTransformer, TokenOptions};
/// let model = HookedTransformer::toy()?;
/// let options = TokenOptions::new().prepend_bos(Bos::No).truncate(true);
/// let tokens = model.to_tokens_with("Mary and John went to the shop. ".repeat(20), options)?;
/// assert_eq!(tokens.ids.size(), [1, model.config().n_ctx as i64]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenOptions {
    bos: Bos,
    padding_side: PaddingSide,
    truncate: bool,
}

impl TokenOptions {
    /// BOS as the model's default says, padding on the right, all tokens kept.
    pub fn new() -> Self {
        TokenOptions::default()
    }

    /// Whether the BOS token is put before texts. Ids stay as they are.
    pub fn prepend_bos(mut self, bos: Bos) -> Self {
        self.bos = bos;
        self
    }

    /// On which side the shorter rows are padded.
    pub fn padding_side(mut self, side: PaddingSide) -> Self {
        self.padding_side = side;
        self
    }

    /// Whether rows that are longer than the model's context are cut to it, BOS counted and their ends lost; no by default.
    ///
    /// TransformerLens cuts in silence unless it is told not to. Here all tokens are kept, and a run refuses more than the
    /// context holds with [`Error::PromptTooLong`].
    pub fn truncate(mut self, yes: bool) -> Self {
        self.truncate = yes;
        self
    }
}

impl Input {
    /// The tokens of this input: `[batch, pos]`.
    pub(crate) fn tokens(
        self,
        default_prepend_bos: bool,
        tokenizer: Option<&Tokenizer>,
        n_ctx: usize,
        options: &TokenOptions,
    ) -> Result<Tokens> {
        let pad = tokenizer.map_or(0, Tokenizer::pad_id);
        let TokenOptions { bos, padding_side: side, truncate } = *options;
        let tokens = match self {
            Input::Texts(texts) => {
                let tokenizer = tokenizer.ok_or(TokenizerError::Missing)?;
                let prepend = prepends_bos(default_prepend_bos, tokenizer, bos);
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                Tokens::padded(&tokenizer.encode_batch(&texts, prepend)?, pad, side)?
            }
            Input::Ids(rows) => Tokens::padded(&rows, pad, side)?,
            Input::Tensor(ids) => Tokens::new(&ids)?,
            Input::Tokens(tokens) => tokens,
        };
        if truncate {
            tokens.truncated(n_ctx, pad, side)
        } else {
            Ok(tokens)
        }
    }
}

/// Whether `bos` means that the BOS token comes first, in a model whose default this is.
pub(crate) fn prepends_bos(default: bool, tokenizer: &Tokenizer, bos: Bos) -> bool {
    match bos {
        Bos::Yes => true,
        Bos::No => false,
        // A tokenizer that has none cannot put one first.
        Bos::Default => default && tokenizer.bos_id().is_some(),
    }
}

macro_rules! input_from {
    ($($type:ty: $pattern:pat => $input:expr;)*) => {
        $(impl From<$type> for Input {
            fn from($pattern: $type) -> Self {
                $input
            }
        })*
    };
}

input_from! {
    &str: text => Input::Texts(vec![text.into()]);
    &String: text => Input::Texts(vec![text.clone()]);
    String: text => Input::Texts(vec![text]);
    &[&str]: texts => Input::Texts(texts.iter().map(|text| text.to_string()).collect());
    Vec<&str>: texts => Input::Texts(texts.into_iter().map(String::from).collect());
    Vec<String>: texts => Input::Texts(texts);
    &[String]: texts => Input::Texts(texts.to_vec());
    &[i64]: ids => Input::Ids(vec![ids.to_vec()]);
    Vec<i64>: ids => Input::Ids(vec![ids]);
    &Vec<i64>: ids => Input::Ids(vec![ids.clone()]);
    Vec<Vec<i64>>: rows => Input::Ids(rows);
    Tensor: ids => Input::Tensor(ids);
    &Tensor: ids => Input::Tensor(ids.shallow_clone());
    Tokens: tokens => Input::Tokens(tokens);
    &Tokens: tokens => Input::Tokens(tokens.clone());
}

impl<const N: usize> From<[&str; N]> for Input {
    fn from(texts: [&str; N]) -> Self {
        Input::from(texts.as_slice())
    }
}

impl<const N: usize> From<&[i64; N]> for Input {
    fn from(ids: &[i64; N]) -> Self {
        Input::Ids(vec![ids.to_vec()])
    }
}

impl<const N: usize> From<[i64; N]> for Input {
    fn from(ids: [i64; N]) -> Self {
        Input::Ids(vec![ids.to_vec()])
    }
}
