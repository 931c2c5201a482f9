//! Where a token lies in a prompt.

use tch::{Device, Kind};

use super::HookedTransformer;
use crate::text::input::Input;
use crate::{Error, Result, TokenizerError};

/// One token: a text that is exactly one, or an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SingleToken {
    /// A text that is exactly one token.
    Text(String),
    /// An id.
    Id(i64),
}

impl From<&str> for SingleToken {
    fn from(text: &str) -> Self {
        SingleToken::Text(text.into())
    }
}

impl From<String> for SingleToken {
    fn from(text: String) -> Self {
        SingleToken::Text(text)
    }
}

impl From<&String> for SingleToken {
    fn from(text: &String) -> Self {
        SingleToken::Text(text.clone())
    }
}

impl From<i64> for SingleToken {
    fn from(id: i64) -> Self {
        SingleToken::Id(id)
    }
}

/// Which of several places is meant: TransformerLens' `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Occurrence {
    /// The first.
    #[default]
    First,
    /// The last.
    Last,
}

impl HookedTransformer {
    /// The position of a token in a text, or in one row of ids: a column, from 0. The BOS token counts where the model's default
    /// puts one before the text.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Occurrence};
    /// let model = HookedTransformer::toy()?;
    /// let prompt = "When Mary and John went to the shop, John gave a bag to";
    /// assert_eq!(model.get_token_position(" John", prompt, Occurrence::First)?, 4);
    /// assert_eq!(model.get_token_position(" John", prompt, Occurrence::Last)?, 10);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for a text that is not one token; [`Error::Shape`] for
    /// several rows.
    pub fn get_token_position(
        &self,
        token: impl Into<SingleToken>,
        input: impl Into<Input>,
        occurrence: Occurrence,
    ) -> Result<usize> {
        let id = match token.into() {
            SingleToken::Text(text) => self.to_single_token(&text)?,
            SingleToken::Id(id) => id,
        };
        let tokens = self.to_tokens(input)?;
        let (ids, mask) = (tokens.ids, tokens.mask);
        if ids.size()[0] != 1 {
            return Err(Error::Shape { what: "the prompt".into(), found: ids.size(), expected: "one row".into() });
        }
        // Padding keeps its columns, but is no token.
        let row = Vec::<i64>::try_from(ids.f_view(-1)?.f_to_device(Device::Cpu)?)?;
        let real = match mask {
            Some(mask) => Vec::<bool>::try_from(mask.f_view(-1)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Bool)?)?,
            None => vec![true; row.len()],
        };
        let mut columns = (0..row.len()).filter(|&column| row[column] == id && real.get(column) == Some(&true));
        let column = match occurrence {
            Occurrence::First => columns.next(),
            Occurrence::Last => columns.next_back(),
        };
        column.ok_or_else(|| {
            let text = self.to_single_str_token(id).unwrap_or_default();
            TokenizerError::TokenNotInPrompt { id, text, tokens: row.len() }.into()
        })
    }
}
