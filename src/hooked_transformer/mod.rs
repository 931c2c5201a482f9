//! [`HookedTransformer`]: the network with its text, its files, its runs and their caches.
//!
//! The only place that knows all of the crate. [`load`] makes one from files, [`init`] from a shape, [`toy`] from the model that the
//! crate carries; [`run`] is what a user asks of it, [`text`] its tokens, [`save`] writes it.

mod directions;
mod init;
mod load;
mod loss;
mod moving;
mod prompt_test;
mod run;
mod run_options;
mod save;
mod save_hugging_face;
mod text;
mod token_position;
#[cfg(feature = "toy")]
mod toy;

use std::ops::Deref;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::model::Transformer;
use crate::pretrained::processing::Processing;
use crate::pretrained::Pretrained;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

pub use directions::OutputTokens;
pub use init::Init;
pub use prompt_test::{AnswerPosition, PromptTest, PromptTestOptions, RankedToken};
pub use run_options::{Outcome, Output, Run};
pub use token_position::{Occurrence, SingleToken};

/// A language model with hook points: TransformerLens' `HookedTransformer`.
///
/// A cheap handle: clones share the weights, and can be sent to and used from several threads.
///
/// ```
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let (logits, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let next = logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
/// assert_eq!(model.to_string(&[next])?, " Mary");
/// assert_eq!(cache[("pattern", 0)].size()[1], 4); // [batch, head, query, key]
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HookedTransformer {
    model: Transformer,
    tokenizer: Option<Tokenizer>,
    default_prepend_bos: bool,
    processing: Arc<[Processing]>,
    /// The `config.json` that the model was read with, where that is Hugging Face's.
    hugging_face: Option<Arc<Map<String, Value>>>,
}

impl Deref for HookedTransformer {
    type Target = Transformer;

    fn deref(&self) -> &Transformer {
        &self.model
    }
}

impl From<Pretrained> for HookedTransformer {
    fn from(pretrained: Pretrained) -> Self {
        let Pretrained { model, tokenizer, default_prepend_bos, processing, hugging_face } = pretrained;
        HookedTransformer {
            model,
            tokenizer,
            default_prepend_bos,
            processing: processing.into(),
            hugging_face: hugging_face.map(Arc::new),
        }
    }
}

impl HookedTransformer {
    /// The bare network.
    pub fn transformer(&self) -> &Transformer {
        &self.model
    }

    /// What was done to the weights when they were loaded, what was left out, and why.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// assert_eq!(model.processing()[0].to_string(), "fold_ln done");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn processing(&self) -> &[Processing] {
        &self.processing
    }

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`].
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or(Error::NoTokenizer)
    }

    /// The same model with another tokenizer.
    pub fn with_tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }
}
