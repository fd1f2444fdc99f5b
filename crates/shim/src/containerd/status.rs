//! A failure as a gRPC status.
//!
//! | class | code |
//! | --- | --- |
//! | not found, already exists, precondition, argument, deadline, unavailable, cancelled | the code of that name |
//! | unsupported | unimplemented |
//! | program not found or not executable, anything else | unknown, as runc's shim answers |
//!
//! Owns: that table. Called by the services.

use bulkhead_model::{Failure, FailureKind};
use containerd_shim_protos::ttrpc::{self, Code};

/// The error a service method returns.
pub(super) fn error(failure: &Failure) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code(failure.kind), &failure.message))
}

const fn code(kind: FailureKind) -> Code {
    match kind {
        FailureKind::NotFound => Code::NOT_FOUND,
        FailureKind::AlreadyExists => Code::ALREADY_EXISTS,
        FailureKind::FailedPrecondition => Code::FAILED_PRECONDITION,
        FailureKind::InvalidArgument => Code::INVALID_ARGUMENT,
        FailureKind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        FailureKind::Unavailable => Code::UNAVAILABLE,
        FailureKind::Cancelled => Code::CANCELLED,
        FailureKind::Unsupported => Code::UNIMPLEMENTED,
        FailureKind::ProgramNotFound | FailureKind::ProgramNotExecutable | FailureKind::Internal => {
            Code::UNKNOWN
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_text_reach_the_client() {
        let failure = Failure::new(FailureKind::NotFound, "container x does not exist");
        let ttrpc::Error::RpcStatus(status) = error(&failure) else {
            panic!("not a status");
        };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert_eq!(status.message, "container x does not exist");
    }
}
