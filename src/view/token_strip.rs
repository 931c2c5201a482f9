//! [`TokenStrip`]: a text whose tokens are coloured by values.

use super::color_scale::ColorScale;
use super::heat_map::refuse_length;
use super::top_tokens::TopTokens;
use crate::Result;

/// A text whose tokens are coloured by values: attributions, losses, activations of a neuron, …; several kinds of values can be chosen
/// from in a page.
///
/// ```
/// use tch_lens::view::{Draw, TokenStrip};
/// use tch_lens::{hook, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let prompt = "When Mary and John went to the shop";
/// let (_, cache) = model.run_with_cache(prompt)?;
/// let neuron = Vec::<f32>::try_from(cache[hook::post(0)].select(0, 0).select(1, 7))?; // [pos]
/// let strip = TokenStrip::new(model.to_str_tokens(prompt)?, "L0N7", neuron)?;
/// println!("{}", strip.figure()?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenStrip {
    pub(super) tokens: Vec<String>,
    pub(super) series: Vec<Series>,
    pub(super) top: Option<TopTokens>,
}

/// Values of one kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) values: Vec<f32>,
    pub(super) scale: ColorScale,
}

impl TokenStrip {
    /// Tokens with a value for each; NaN for none.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of values.
    pub fn new(
        tokens: impl IntoIterator<Item = impl Into<String>>,
        value_name: impl Into<String>,
        values: Vec<f32>,
    ) -> Result<Self> {
        let tokens = tokens.into_iter().map(Into::into).collect();
        TokenStrip { tokens, series: Vec::new(), top: None }.and(value_name, values)
    }

    /// Further values of the tokens, on a scale of their own.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of values.
    pub fn and(mut self, value_name: impl Into<String>, values: Vec<f32>) -> Result<Self> {
        refuse_length("the values of a token strip", values.len(), self.tokens.len())?;
        let scale = ColorScale::of(values.iter().copied());
        self.series.push(Series { name: value_name.into(), values, scale });
        Ok(self)
    }

    /// From values to colours, of the values given last.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for a scale whose ends are the same or not finite.
    pub fn color_scale(mut self, scale: ColorScale) -> Result<Self> {
        let scale = scale.checked()?;
        if let Some(series) = self.series.last_mut() {
            series.scale = scale;
        }
        Ok(self)
    }

    /// A list of tokens for each token, which a page shows under the pointer.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of lists.
    pub fn top_tokens(mut self, top: TopTokens) -> Result<Self> {
        refuse_length("the lists of a token strip", top.len(), self.tokens.len())?;
        self.top = Some(top);
        Ok(self)
    }
}
