-- The first schema. Applied once, in one transaction; later files change it.

CREATE TABLE region (
  region_id TEXT NOT NULL PRIMARY KEY COLLATE "C",
  display_name TEXT NOT NULL COLLATE "C",
  jurisdiction TEXT NOT NULL COLLATE "C",
  currency TEXT NOT NULL COLLATE "C",
  image_storage_nanos BIGINT NOT NULL,
  image_storage_free_bytes BIGINT NOT NULL,
  windows_license_nanos BIGINT NOT NULL,
  CONSTRAINT region_jurisdiction CHECK (jurisdiction IN ('MAINLAND_CHINA', 'INTERNATIONAL')),
  CONSTRAINT region_prices CHECK (image_storage_nanos >= 0 AND windows_license_nanos >= 0)
);

CREATE TABLE zone (
  zone_id TEXT NOT NULL PRIMARY KEY COLLATE "C",
  region_id TEXT NOT NULL COLLATE "C",
  CONSTRAINT zone_of_region UNIQUE (zone_id, region_id),
  CONSTRAINT zone_region FOREIGN KEY (region_id) REFERENCES region
);

CREATE TABLE instance_type (
  instance_type TEXT NOT NULL PRIMARY KEY COLLATE "C",
  architecture TEXT NOT NULL COLLATE "C",
  vcpu_count INTEGER NOT NULL,
  memory_bytes BIGINT NOT NULL,
  disk_bytes BIGINT NOT NULL
);

CREATE TABLE account (
  account_id TEXT NOT NULL PRIMARY KEY COLLATE "C",
  display_name TEXT NOT NULL COLLATE "C",
  state TEXT NOT NULL COLLATE "C",
  version BIGINT NOT NULL,
  create_time TIMESTAMPTZ NOT NULL,
  update_time TIMESTAMPTZ NOT NULL,
  CONSTRAINT account_state CHECK (state IN ('ACTIVE', 'SUSPENDED'))
);

CREATE TABLE account_region (
  account_id TEXT NOT NULL COLLATE "C",
  region_id TEXT NOT NULL COLLATE "C",
  images_used INTEGER NOT NULL,
  images_limit INTEGER NOT NULL,
  PRIMARY KEY (account_id, region_id),
  CONSTRAINT account_region_images CHECK (images_used >= 0 AND images_used <= images_limit),
  CONSTRAINT account_region_account FOREIGN KEY (account_id) REFERENCES account,
  CONSTRAINT account_region_region FOREIGN KEY (region_id) REFERENCES region
);

CREATE TABLE image (
  image_id TEXT NOT NULL PRIMARY KEY COLLATE "C",
  name TEXT NOT NULL COLLATE "C",
  description TEXT NOT NULL COLLATE "C",
  region_id TEXT NOT NULL COLLATE "C",
  owner_account_id TEXT COLLATE "C",
  origin TEXT NOT NULL COLLATE "C",
  state TEXT NOT NULL COLLATE "C",
  failure_reason TEXT NOT NULL COLLATE "C",
  failure_message TEXT NOT NULL COLLATE "C",
  os_family TEXT NOT NULL COLLATE "C",
  os_platform TEXT NOT NULL COLLATE "C",
  os_version TEXT NOT NULL COLLATE "C",
  architecture TEXT NOT NULL COLLATE "C",
  size_bytes BIGINT NOT NULL,
  min_disk_bytes BIGINT NOT NULL,
  min_memory_bytes BIGINT NOT NULL,
  family TEXT NOT NULL COLLATE "C",
  labels JSONB NOT NULL,
  deprecation_state TEXT NOT NULL COLLATE "C",
  replacement_image_id TEXT NOT NULL COLLATE "C",
  deprecation_message TEXT NOT NULL COLLATE "C",
  content_uri TEXT NOT NULL COLLATE "C",
  checksum_algorithm TEXT NOT NULL COLLATE "C",
  checksum_value TEXT NOT NULL COLLATE "C",
  source_image_id TEXT COLLATE "C",
  source_region_id TEXT NOT NULL COLLATE "C",
  source_instance_id TEXT NOT NULL COLLATE "C",
  source_uri TEXT NOT NULL COLLATE "C",
  copy_owner_account_id TEXT COLLATE "C",
  software JSONB NOT NULL,
  share_count INTEGER NOT NULL,
  share_limit INTEGER NOT NULL,
  support_kind TEXT NOT NULL COLLATE "C",
  support_contact_uri TEXT NOT NULL COLLATE "C",
  support_note TEXT NOT NULL COLLATE "C",
  cloud_init BOOLEAN NOT NULL,
  boot_mode TEXT NOT NULL COLLATE "C",
  quote JSONB,
  version BIGINT NOT NULL,
  create_time TIMESTAMPTZ NOT NULL,
  update_time TIMESTAMPTZ NOT NULL,
  delete_time TIMESTAMPTZ,
  CONSTRAINT image_origin CHECK (origin IN ('PUBLISHED', 'INSTANCE', 'IMPORTED', 'COPIED')),
  CONSTRAINT image_state CHECK (state IN ('CREATING', 'IMPORTING', 'COPYING', 'AVAILABLE', 'FAILED', 'DELETING', 'DELETED')),
  CONSTRAINT image_deprecation_state CHECK (deprecation_state IN ('CURRENT', 'DEPRECATED', 'OBSOLETE')),
  CONSTRAINT image_public_has_no_owner CHECK ((origin = 'PUBLISHED') = (owner_account_id IS NULL)),
  CONSTRAINT image_shares CHECK (share_count >= 0 AND share_count <= share_limit),
  CONSTRAINT image_shared_is_available CHECK (share_count = 0 OR (owner_account_id IS NOT NULL AND state = 'AVAILABLE')),
  CONSTRAINT image_delete_time CHECK ((state = 'DELETED') = (delete_time IS NOT NULL)),
  CONSTRAINT image_copy_of_own CHECK ((origin = 'COPIED') = (copy_owner_account_id IS NOT NULL) AND (copy_owner_account_id IS NULL OR (copy_owner_account_id = owner_account_id AND source_image_id IS NOT NULL))),
  CONSTRAINT image_of_owner UNIQUE (image_id, owner_account_id),
  CONSTRAINT image_of_owner_in_region UNIQUE (image_id, owner_account_id, region_id),
  CONSTRAINT image_region FOREIGN KEY (region_id) REFERENCES region,
  CONSTRAINT image_owner FOREIGN KEY (owner_account_id, region_id) REFERENCES account_region (account_id, region_id),
  CONSTRAINT image_copy FOREIGN KEY (source_image_id, copy_owner_account_id) REFERENCES image (image_id, owner_account_id)
);
CREATE UNIQUE INDEX image_name_of_owner ON image (owner_account_id, region_id, name) WHERE state <> 'DELETED' AND owner_account_id IS NOT NULL;
CREATE UNIQUE INDEX image_name_public ON image (region_id, name) WHERE state <> 'DELETED' AND owner_account_id IS NULL;
CREATE INDEX image_newest_of_owner ON image (owner_account_id, region_id, create_time, image_id) WHERE state <> 'DELETED';
CREATE INDEX image_newest_public ON image (region_id, create_time, image_id) WHERE state <> 'DELETED' AND owner_account_id IS NULL;
CREATE INDEX image_newest_custom ON image (region_id, create_time, image_id) WHERE state <> 'DELETED' AND owner_account_id IS NOT NULL;
CREATE INDEX image_name_custom ON image (region_id, name, image_id) WHERE state <> 'DELETED' AND owner_account_id IS NOT NULL;
CREATE INDEX image_family ON image (region_id, family, create_time) WHERE state = 'AVAILABLE' AND owner_account_id IS NULL;
CREATE INDEX image_copies ON image (source_image_id) WHERE state = 'COPYING';
CREATE INDEX image_of_account ON image (owner_account_id, region_id);

CREATE TABLE image_share (
  image_id TEXT NOT NULL COLLATE "C",
  recipient_account_id TEXT NOT NULL COLLATE "C",
  owner_account_id TEXT NOT NULL COLLATE "C",
  region_id TEXT NOT NULL COLLATE "C",
  granted_by TEXT NOT NULL COLLATE "C",
  create_time TIMESTAMPTZ NOT NULL,
  PRIMARY KEY (image_id, recipient_account_id),
  CONSTRAINT image_share_not_with_owner CHECK (recipient_account_id <> owner_account_id),
  CONSTRAINT image_share_by_owner CHECK (granted_by = owner_account_id),
  CONSTRAINT image_share_image FOREIGN KEY (image_id, owner_account_id, region_id) REFERENCES image (image_id, owner_account_id, region_id),
  CONSTRAINT image_share_recipient FOREIGN KEY (recipient_account_id, region_id) REFERENCES account_region (account_id, region_id)
);
CREATE INDEX image_share_received ON image_share (recipient_account_id, region_id, image_id);

CREATE TABLE operation (
  operation_id TEXT NOT NULL PRIMARY KEY COLLATE "C",
  account_id TEXT NOT NULL COLLATE "C",
  created_by TEXT NOT NULL COLLATE "C",
  method TEXT NOT NULL COLLATE "C",
  request_id TEXT NOT NULL COLLATE "C",
  region_id TEXT NOT NULL COLLATE "C",
  target_ids JSONB NOT NULL,
  input JSONB NOT NULL,
  steps JSONB NOT NULL,
  warnings JSONB NOT NULL,
  quotes JSONB NOT NULL,
  state TEXT NOT NULL COLLATE "C",
  response BYTEA,
  error BYTEA,
  cancel_requested BOOLEAN NOT NULL,
  epoch BIGINT NOT NULL,
  attempts INTEGER NOT NULL,
  lease_until TIMESTAMPTZ,
  create_time TIMESTAMPTZ NOT NULL,
  start_time TIMESTAMPTZ,
  end_time TIMESTAMPTZ,
  CONSTRAINT operation_state CHECK (state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
  CONSTRAINT operation_end_time CHECK ((state IN ('PENDING', 'RUNNING')) = (end_time IS NULL)),
  CONSTRAINT operation_response CHECK ((state = 'SUCCEEDED') = (response IS NOT NULL)),
  CONSTRAINT operation_error CHECK ((state IN ('FAILED', 'CANCELLED')) = (error IS NOT NULL))
);
CREATE INDEX operation_newest_of_account ON operation (account_id, create_time, operation_id);
CREATE INDEX operation_newest ON operation (create_time, operation_id);
CREATE INDEX operation_claimable ON operation (create_time) WHERE end_time IS NULL;

CREATE TABLE instance (
  instance_id TEXT NOT NULL PRIMARY KEY COLLATE "C",
  name TEXT NOT NULL COLLATE "C",
  description TEXT NOT NULL COLLATE "C",
  region_id TEXT NOT NULL COLLATE "C",
  zone_id TEXT NOT NULL COLLATE "C",
  account_id TEXT NOT NULL COLLATE "C",
  instance_type TEXT NOT NULL COLLATE "C",
  state TEXT NOT NULL COLLATE "C",
  failure TEXT NOT NULL COLLATE "C",
  labels JSONB NOT NULL,
  image_id TEXT NOT NULL COLLATE "C",
  launch_name TEXT NOT NULL COLLATE "C",
  launch_owner_account_id TEXT COLLATE "C",
  launch_kind TEXT NOT NULL COLLATE "C",
  launch_trust TEXT NOT NULL COLLATE "C",
  launch_checksum_algorithm TEXT NOT NULL COLLATE "C",
  launch_checksum_value TEXT NOT NULL COLLATE "C",
  launch_content_uri TEXT NOT NULL COLLATE "C",
  launch_size_bytes BIGINT NOT NULL,
  launch_min_disk_bytes BIGINT NOT NULL,
  launch_min_memory_bytes BIGINT NOT NULL,
  launch_os_family TEXT NOT NULL COLLATE "C",
  launch_os_platform TEXT NOT NULL COLLATE "C",
  launch_os_version TEXT NOT NULL COLLATE "C",
  launch_architecture TEXT NOT NULL COLLATE "C",
  launch_boot_mode TEXT NOT NULL COLLATE "C",
  launch_cloud_init BOOLEAN NOT NULL,
  operation_id TEXT COLLATE "C",
  version BIGINT NOT NULL,
  create_time TIMESTAMPTZ NOT NULL,
  update_time TIMESTAMPTZ NOT NULL,
  delete_time TIMESTAMPTZ,
  CONSTRAINT instance_state CHECK (state IN ('PROVISIONING', 'STARTING', 'RUNNING', 'STOPPING', 'STOPPED', 'REBOOTING', 'REINSTALLING', 'IMAGING', 'FAILED', 'DELETING', 'DELETED')),
  CONSTRAINT instance_delete_time CHECK ((state = 'DELETED') = (delete_time IS NOT NULL)),
  CONSTRAINT instance_operation_moves CHECK ((operation_id IS NULL) = (state IN ('RUNNING', 'STOPPED', 'FAILED', 'DELETED'))),
  CONSTRAINT instance_account FOREIGN KEY (account_id, region_id) REFERENCES account_region (account_id, region_id),
  CONSTRAINT instance_zone FOREIGN KEY (zone_id, region_id) REFERENCES zone (zone_id, region_id),
  CONSTRAINT instance_type_known FOREIGN KEY (instance_type) REFERENCES instance_type,
  CONSTRAINT instance_image FOREIGN KEY (image_id) REFERENCES image,
  CONSTRAINT instance_operation FOREIGN KEY (operation_id) REFERENCES operation
);
CREATE INDEX instance_newest_of_account ON instance (account_id, region_id, create_time, instance_id) WHERE state <> 'DELETED';
CREATE INDEX instance_newest ON instance (region_id, create_time, instance_id) WHERE state <> 'DELETED';
CREATE INDEX instance_name_of_account ON instance (account_id, region_id, name, instance_id) WHERE state <> 'DELETED';
CREATE INDEX instance_name ON instance (region_id, name, instance_id) WHERE state <> 'DELETED';
CREATE INDEX instance_of_image ON instance (image_id, account_id) WHERE state <> 'DELETED';
CREATE INDEX instance_of_account ON instance (account_id, region_id);
CREATE INDEX instance_of_operation ON instance (operation_id) WHERE operation_id IS NOT NULL;

CREATE TABLE request_log (
  account_id TEXT NOT NULL COLLATE "C",
  method TEXT NOT NULL COLLATE "C",
  request_id TEXT NOT NULL COLLATE "C",
  fingerprint BYTEA NOT NULL,
  answer BYTEA,
  create_time TIMESTAMPTZ NOT NULL,
  PRIMARY KEY (account_id, method, request_id)
);
CREATE INDEX request_log_age ON request_log (create_time);

CREATE TABLE secret (
  name TEXT NOT NULL PRIMARY KEY COLLATE "C",
  value BYTEA NOT NULL
);
