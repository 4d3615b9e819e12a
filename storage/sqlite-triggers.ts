/** Each change of users, tokens or grants raises the version by which servers know that what they remember is old. */
export const accessTriggers = [
  ['user', 'INSERT'],
  ['user', 'UPDATE'],
  ['user', 'DELETE'],
  ['user_group', 'INSERT'],
  ['user_group', 'DELETE'],
  ['access_token', 'INSERT'],
  ['access_token', 'DELETE'],
  ['access_grant', 'INSERT'],
  ['access_grant', 'DELETE'],
]
  .map(
    ([table, event]) =>
      `CREATE TRIGGER ${table}_${event}_noted AFTER ${event} ON ${table} BEGIN
         UPDATE access_state SET version = version + 1;
       END;`,
  )
  .join('\n')

/** A mirror holds a blob as long as one of its repositories links it; its blobs and their bytes are counted. */
export const mirrorTriggers = `
  CREATE TRIGGER mirror_link_added AFTER INSERT ON blob_link
  WHEN (SELECT mirror FROM repository WHERE id = new.repository_id) IS NOT NULL BEGIN
    INSERT INTO mirror_blob (mirror, blob_id, size, used_at)
      SELECT r.mirror, b.id, b.size, new.linked_at FROM repository r, blob b
      WHERE r.id = new.repository_id AND b.id = new.blob_id
      ON CONFLICT DO UPDATE SET used_at = excluded.used_at;
  END;
  CREATE TRIGGER mirror_link_removed AFTER DELETE ON blob_link
  WHEN (SELECT mirror FROM repository WHERE id = old.repository_id) IS NOT NULL BEGIN
    DELETE FROM mirror_blob WHERE blob_id = old.blob_id
      AND mirror = (SELECT mirror FROM repository WHERE id = old.repository_id)
      AND NOT EXISTS (
        SELECT 1 FROM blob_link l JOIN repository r ON r.id = l.repository_id
        WHERE l.blob_id = old.blob_id AND r.mirror = mirror_blob.mirror);
  END;
  CREATE TRIGGER mirror_blob_added AFTER INSERT ON mirror_blob BEGIN
    INSERT INTO mirror (name, blobs, bytes) VALUES (new.mirror, 1, new.size)
      ON CONFLICT (name) DO UPDATE SET blobs = blobs + 1, bytes = bytes + excluded.bytes;
  END;
  CREATE TRIGGER mirror_blob_removed AFTER DELETE ON mirror_blob BEGIN
    UPDATE mirror SET blobs = blobs - 1, bytes = bytes - old.size WHERE name = old.mirror;
  END;
`

/**
 * A repository that a quota counts adds to it what it links and stores, each change by itself. These and the next were
 * replaced by those of sqlite-quota-triggers.ts.
 */
export const quotaTriggers = (
  [
    ['link_added', 'INSERT ON blob_link', 'new', '+ (SELECT size FROM blob WHERE id = new.blob_id)'],
    ['link_removed', 'DELETE ON blob_link', 'old', '- (SELECT size FROM blob WHERE id = old.blob_id)'],
    ['manifest_added', 'INSERT ON manifest', 'new', '+ new.size'],
    ['manifest_removed', 'DELETE ON manifest', 'old', '- old.size'],
  ] as const
)
  .map(
    ([name, event, row, change]) =>
      `CREATE TRIGGER quota_${name} AFTER ${event} WHEN EXISTS (SELECT 1 FROM quota) BEGIN
         UPDATE quota SET used = used ${change} WHERE pattern IN (
           SELECT m.pattern FROM repository r JOIN quota_repository m ON m.repository = r.name
           WHERE r.id = ${row}.repository_id);
       END;`,
  )
  .join('\n')

/** The bytes of an upload count, and those that it may still write. */
export const quotaUploadTriggers = `
  CREATE TRIGGER quota_upload_changed AFTER UPDATE OF offset, reserved ON upload
  WHEN max(new.offset, new.reserved) <> max(old.offset, old.reserved) AND EXISTS (SELECT 1 FROM quota) BEGIN
    UPDATE quota SET used = used + max(new.offset, new.reserved) - max(old.offset, old.reserved)
    WHERE pattern IN (SELECT pattern FROM quota_repository WHERE repository = new.repository);
  END;
  CREATE TRIGGER quota_upload_removed AFTER DELETE ON upload
  WHEN max(old.offset, old.reserved) > 0 AND EXISTS (SELECT 1 FROM quota) BEGIN
    UPDATE quota SET used = used - max(old.offset, old.reserved)
    WHERE pattern IN (SELECT pattern FROM quota_repository WHERE repository = old.repository);
  END;
`
