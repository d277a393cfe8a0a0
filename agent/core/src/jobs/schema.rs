//! How texts with a form of their own look in JSON, for the description of the control API.

use std::borrow::Cow;

use utoipa::openapi::schema::{SchemaFormat, SchemaType};
use utoipa::openapi::{ObjectBuilder, OneOfBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::secret::MAX_URL_BYTES;
use super::target::MAX_PATH_BYTES;
use super::{RemoteUrl, Secret, TargetPath};

/// 32 bytes as hexadecimal digits.
const HEX: &str = "^[0-9a-fA-F]{64}$";

/// A scheme, and no blanks.
const URL: &str = "^[A-Za-z0-9+.-]+://[^\\s]*$";

/// Absolute.
const PATH: &str = "^/";

impl PartialSchema for RemoteUrl {
    fn schema() -> RefOr<Schema> {
        let url = text().format(Some(SchemaFormat::Custom("uri".to_owned())));
        url.pattern(Some(URL))
            .max_length(Some(MAX_URL_BYTES))
            .into()
    }
}

impl PartialSchema for TargetPath {
    fn schema() -> RefOr<Schema> {
        text()
            .pattern(Some(PATH))
            .max_length(Some(MAX_PATH_BYTES))
            .into()
    }
}

impl PartialSchema for Secret {
    fn schema() -> RefOr<Schema> {
        text().into()
    }
}

macro_rules! named {
    ($($type:ty),*) => {
        $(impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                stringify!($type).into()
            }
        })*
    };
}

named!(RemoteUrl, TargetPath, Secret);

/// A digest, or none: `{"sha256": "HEX"}` or `{"blake3": "HEX"}`.
pub(super) fn digest() -> Schema {
    let of = |name: &str| {
        let object = ObjectBuilder::new().property(name, text().pattern(Some(HEX)));
        object.required(name)
    };
    let none = ObjectBuilder::new().schema_type(Type::Null);
    let one = OneOfBuilder::new().item(none).item(of("sha256"));
    Schema::OneOf(one.item(of("blake3")).build())
}

/// A content's key.
pub(super) fn content_key() -> Schema {
    text().pattern(Some(HEX)).build().into()
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String))
}
