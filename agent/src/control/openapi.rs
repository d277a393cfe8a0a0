//! The description of the control API, as OpenAPI 3.1.
//!
//! Paths and shapes come from the handlers and types themselves; here is what stands around them.

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement,
};

use super::problem::Body;

/// Where an agent answers with it.
pub(super) const ROUTE: &str = "/v1/openapi.json";

const TOKEN: &str = "token";

const DESCRIPTION: &str = "Tells an agent what to do, over the Unix socket `control.sock` in its state directory, where the kernel says who \
     calls; or over a loopback port, if `control.listen` names one, with the token in `control.token`.";

/// What stands before the paths.
pub(super) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Branchline control API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .build();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let components = ComponentsBuilder::new()
        .schema_from::<Body>()
        .security_scheme(TOKEN, bearer)
        .build();
    let nothing: [&str; 0] = [];
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new(TOKEN, nothing)]))
        .build()
}

/// The whole document.
pub(super) fn json(document: OpenApi) -> String {
    document
        .to_json()
        .expect("texts and numbers are always JSON")
}

pub(super) fn answer(document: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}
