"""What is said of google's operations, by full name: google's own comments speak of any service, these of this one.

Both clients' methods and the pages of docs/api have it from here. Fields without a comment are not offered.
"""

_NAME = "Name of the operation, `operations/op-...`. Required."

COMMENTS = {
    f"google.longrunning.{name}": comment
    for name, comment in {
        "Operations": "What takes time, while it is done and after.\n\n"
        "An operation and its effect are written together: once it is done, what it made is there. "
        "An operation belongs to one account; the operator sees all of them.\n\n"
        "Every call may refuse with CREDENTIALS_MISSING, CREDENTIALS_INVALID, ACTING_NOT_ALLOWED, INVALID_REQUEST,\n"
        "TOO_MANY_CALLS, CALL_TIMED_OUT, SERVICE_STOPPING, DATABASE_UNAVAILABLE and INTERNAL_ERROR; every change with\n"
        "TRANSACTION_CONFLICT; every call with `request_id` with REQUEST_ID_REUSED; every call with an etag with\n"
        "ETAG_MISMATCH.",
        "Operations.ListOperations": "Lists the caller's operations; to the operator, those of every account.\n\n"
        "Who: everybody. Refuses: INVALID_FILTER, INVALID_PAGE_TOKEN.",
        "Operations.GetOperation": "Returns one operation as it is now.\n\n"
        "Who: its account and the operator. Refuses: OPERATION_NOT_FOUND.",
        "Operations.DeleteOperation": "Forgets an operation that has ended.\n\n"
        "Who: its account and the operator. Refuses: OPERATION_NOT_FOUND, OPERATION_RUNNING.",
        "Operations.CancelOperation": "Asks an operation to stop; it may still succeed.\n\n"
        "Who: its account and the operator. Refuses: OPERATION_NOT_FOUND.",
        "Operations.WaitOperation": "Returns an operation when it ends or the time is up.\n\n"
        "Who: its account and the operator. Refuses: OPERATION_NOT_FOUND.",
        "ListOperationsRequest.filter": "Which operations. Default: all.",
        "ListOperationsRequest.page_size": "Most results in the page, 0 to 2147483647; over 100 is taken as 100, and a "
        "page ends early at 3 MiB. Default: 50.",
        "ListOperationsRequest.page_token": "next_page_token of the page before; the other fields must be as they "
        "were. Default: the first page.",
        "ListOperationsResponse.operations": "The operations of the page.",
        "ListOperationsResponse.next_page_token": "Token of the next page; empty on the last one.",
        "GetOperationRequest.name": _NAME,
        "DeleteOperationRequest.name": _NAME,
        "CancelOperationRequest.name": _NAME,
        "WaitOperationRequest.name": _NAME,
        "WaitOperationRequest.timeout": "The longest that the service waits. Default: as long as the call may take.",
        "Operation": "Work that goes on whether or not anybody waits for it.",
        "Operation.name": "Its name, `operations/op-...`; empty if the call was made with validate_only.",
        "Operation.metadata": "What it does, how far it is, its warnings and prices: always an OperationMetadata.",
        "Operation.done": "True once it has ended, well or not.",
        "Operation.error": "Why it failed; set if it did, with the details of any refusal.",
        "Operation.response": "What it made; set if it succeeded. Each call says of what type.",
    }.items()
}
