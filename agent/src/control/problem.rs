//! Errors as `application/problem+json` (RFC 9457), both ways.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::api::{Failure, FailureKind};

pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A failure with the status it is answered with.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) failure: Failure,
}

/// RFC 9457, section 3.1, and the `kind` of [`Failure`] as an extension.
#[derive(Serialize, Deserialize)]
struct Body {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    kind: FailureKind,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            status: status_of(failure.kind),
            failure,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self {
            status,
            failure: Failure { kind, message },
        } = self;
        let body = Body {
            r#type: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: message,
            kind,
        };
        let json = serde_json::to_vec(&body).expect("texts and numbers are always JSON");
        (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], json).into_response()
    }
}

/// Reads the body that [`Problem`] writes.
pub(super) fn failure_of(body: &[u8]) -> Option<Failure> {
    let body: Body = serde_json::from_slice(body).ok()?;
    Some(Failure::new(body.kind, body.detail))
}

/// The HTTP status of each kind of failure: the one place where it is decided.
fn status_of(kind: FailureKind) -> StatusCode {
    match kind {
        FailureKind::Usage => StatusCode::BAD_REQUEST,
        FailureKind::OriginRefused | FailureKind::Network | FailureKind::Verification => {
            StatusCode::BAD_GATEWAY
        }
        FailureKind::LocalDisk => StatusCode::INTERNAL_SERVER_ERROR,
        FailureKind::AgentUnreachable | FailureKind::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
    }
}
