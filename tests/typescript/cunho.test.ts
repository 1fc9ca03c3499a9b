/** A TypeScript program against a running service: CUNHO_ADDRESS is where it is, CUNHO_TOKEN a new account's token. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { after, test } from "node:test";
import { credentials, status } from "@grpc/grpc-js";
import { bearer, call, Refused, result, unpack } from "./cunho.js";
import { type Image, Image_State, ImageKind, Image_Trust } from "./generated/cunho/v1/image.js";
import { DeleteImageRequest, ImageServiceClient, ListImagesRequest } from "./generated/cunho/v1/image_service.js";
import { Instance_State } from "./generated/cunho/v1/instance.js";
import {
  CreateInstanceRequest,
  CreateInstanceResponse,
  InstanceServiceClient,
} from "./generated/cunho/v1/instance_service.js";
import { OperationMetadata } from "./generated/cunho/v1/operation_metadata.js";
import { OperationsClient } from "./generated/google/longrunning/operations.js";

const address = process.env["CUNHO_ADDRESS"] ?? "";
const caller = bearer(process.env["CUNHO_TOKEN"] ?? "");
const images = new ImageServiceClient(address, credentials.createInsecure());
const instances = new InstanceServiceClient(address, credentials.createInsecure());
const operations = new OperationsClient(address, credentials.createInsecure());
const place = { regionId: "ap-guangzhou", zoneId: "ap-guangzhou-3", instanceType: "S5.MEDIUM4" };

after(() => [images, instances, operations].forEach((client) => client.close()));

/** Pages of one image each, of the public images that the filter finds. */
async function* pages(filter: string): AsyncGenerator<Image[]> {
  const request = ListImagesRequest.fromPartial({
    regionId: place.regionId,
    filter: `kind = PUBLIC AND ${filter}`,
    orderBy: "name",
    pageSize: 1,
  });
  do {
    const page = await call(images, images.listImages, request, caller);
    request.pageToken = page.nextPageToken;
    yield page.images;
  } while (request.pageToken);
}

async function debian(): Promise<Image> {
  const [page] = await Array.fromAsync(pages('name = "Debian 12 64bit"'));
  assert.ok(page?.[0]);
  return page[0];
}

async function refusal(answer: Promise<unknown>): Promise<Refused> {
  const error: unknown = await answer.catch((error: unknown) => error);
  assert.ok(error instanceof Refused, String(error));
  return error;
}

test("images are listed by a filter, page by page", async () => {
  const found = await Array.fromAsync(pages("os.platform = debian"));
  assert.deepEqual(
    found.map((page) => page.map((image) => image.name)),
    [["Debian 12 32bit"], ["Debian 12 64bit"], ["Debian 12 ARM64"]],
  );
});

test("numbers, enums and times of a message have types of their own", async () => {
  const image = await debian();
  assert.equal(image.sizeBytes, 5_368_709_120n);
  assert.equal(image.kind, ImageKind.IMAGE_KIND_PUBLIC);
  assert.equal(image.state, Image_State.STATE_AVAILABLE);
  assert.equal(image.trust, Image_Trust.TRUST_PROVIDER);
  assert.ok(image.createTime instanceof Date);
  // @ts-expect-error: a field that there is not does not pass the type checker
  assert.equal(image.nickname, undefined);
});

test("an instance is created, and its operation ends with it", async () => {
  const image = await debian();
  const request = CreateInstanceRequest.fromPartial({ ...place, imageId: image.imageId, labels: { role: "web" } });
  const operation = await call(instances, instances.createInstance, request, caller);
  assert.equal(unpack(operation.metadata, OperationMetadata)?.method, "CreateInstance");
  const created = await result(operations, caller, operation.name, CreateInstanceResponse);
  assert.deepEqual(
    created.instances.map(({ state, labels, launchImage }) => [state, labels, launchImage?.imageId]),
    [[Instance_State.STATE_RUNNING, { role: "web" }, image.imageId]],
  );
});

test("a refusal has reason, metadata, rule and remedy", async () => {
  const { imageId } = await debian();
  const request = DeleteImageRequest.fromPartial({ imageId });
  const refused = await refusal(call(images, images.deleteImage, request, caller));
  assert.equal(refused.reason, "PUBLIC_IMAGE_READ_ONLY");
  assert.equal(refused.metadata["image_id"], imageId);
  assert.equal(refused.rule, "PUB-8");
  assert.match(refused.remedy, /CreateImage/);
  assert.deepEqual(refused.violations, []);
});

test("a malformed request is told every wrong field at once", async () => {
  const request = CreateInstanceRequest.fromPartial({ ...place, regionId: "", count: -1, imageId: "img-00000000" });
  const refused = await refusal(call(instances, instances.createInstance, request, caller));
  assert.equal(refused.reason, "INVALID_REQUEST");
  assert.deepEqual(refused.violations.map(({ field }) => field).sort(), ["count", "region_id"]);
});

test("a call ends at its deadline", async () => {
  const connections: Socket[] = [];
  const silent = createServer((connection) => connections.push(connection)).listen(0, "127.0.0.1");
  await once(silent, "listening");
  const { port } = silent.address() as AddressInfo;
  const client = new ImageServiceClient(`127.0.0.1:${port}`, credentials.createInsecure());
  const request = ListImagesRequest.fromPartial({ regionId: place.regionId });
  await assert.rejects(
    call(client, client.listImages, request, caller, 0.2),
    { code: status.DEADLINE_EXCEEDED },
  );
  client.close();
  connections.forEach((connection) => connection.destroy());
  silent.close();
});
