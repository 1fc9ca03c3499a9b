/** What a program adds to the generated clients: answers as promises, refusals with their details, operations. */

import { type CallOptions, type Client, type ClientUnaryCall, Metadata, type ServiceError } from "@grpc/grpc-js";
import { Advice } from "./generated/cunho/v1/advice.js";
import { OperationsClient, WaitOperationRequest } from "./generated/google/longrunning/operations.js";
import type { Any } from "./generated/google/protobuf/any.js";
import { BadRequest, type BadRequest_FieldViolation, ErrorInfo } from "./generated/google/rpc/error_details.js";
import { Status } from "./generated/google/rpc/status.js";

interface Type<Message> {
  readonly $type: string;
  decode(bytes: Uint8Array): Message;
}

/** The message inside, or nothing if it is of another type. */
export function unpack<Message>(packed: Any | undefined, type: Type<Message>): Message | undefined {
  return packed?.typeUrl.endsWith(`/${type.$type}`) ? type.decode(packed.value) : undefined;
}

/** Why the service refused a call, or why an operation failed. */
export class Refused extends Error {
  /** A name of cunho.v1.ErrorReason. */
  readonly reason: string;
  /** What the reason is about: the keys are in its comment. */
  readonly metadata: Record<string, string>;
  /** Id of the rule, for example "CUS-5". */
  readonly rule: string;
  /** What to do about it. */
  readonly remedy: string;
  /** What is wrong with each field of a malformed request. */
  readonly violations: BadRequest_FieldViolation[];

  constructor({ message, details }: Status) {
    super(message);
    const detail = <Message>(type: Type<Message>) =>
      details.map((packed) => unpack(packed, type)).find((found) => found !== undefined);
    ({ reason: this.reason = "", metadata: this.metadata = {} } = detail(ErrorInfo) ?? {});
    ({ rule: this.rule = "", remedy: this.remedy = "" } = detail(Advice) ?? {});
    this.violations = detail(BadRequest)?.fieldViolations ?? [];
  }
}

type Method<Request, Response> = (
  request: Request,
  caller: Metadata,
  options: CallOptions,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** The answer of one call of a client's method; waited for that many seconds. */
export function call<Request, Response>(
  client: Client,
  method: Method<Request, Response>,
  request: Request,
  caller: Metadata,
  seconds = 30,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    method.call(client, request, caller, { deadline: Date.now() + seconds * 1000 }, (error, response) => {
      const [details] = error?.metadata.get("grpc-status-details-bin") ?? [];
      if (details instanceof Buffer) reject(new Refused(Status.decode(details)));
      else if (error) reject(error);
      else resolve(response);
    });
  });
}

/** The credentials of a caller, for each of its calls. */
export function bearer(token: string): Metadata {
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}

/** What an operation ends with; the service is asked again until then. */
export async function result<Response>(
  operations: OperationsClient,
  caller: Metadata,
  name: string,
  type: Type<Response>,
): Promise<Response> {
  const request = WaitOperationRequest.fromPartial({ name, timeout: { seconds: 20n } });
  for (;;) {
    const operation = await call(operations, operations.waitOperation, request, caller);
    if (operation.error) throw new Refused(operation.error);
    const response = unpack(operation.response, type);
    if (response) return response;
    if (operation.done) throw new TypeError(`${name} ended with ${operation.response?.typeUrl}, not ${type.$type}`);
  }
}
