import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { type Algorithm, algorithmOf, type Digest, encodedOf, parseDigest } from '../src/oci/digest.js'

/** Names of the folders that blobs are spread over, by the first digits of their digests. */
export const leaves = Array.from({ length: 256 }, (_, at) => at.toString(16).padStart(2, '0'))

/** Where bytes are in a data folder, or in a backup: no other place makes their paths. */
export class Layout {
  readonly blobs: string
  readonly uploads: string
  readonly quarantine: string

  constructor(root: string) {
    this.blobs = join(root, 'blobs')
    this.uploads = join(root, 'uploads')
    this.quarantine = join(root, 'quarantine')
  }

  upload(id: string): string {
    return join(this.uploads, id)
  }

  blobDirectory(digest: Digest): string {
    return join(this.blobs, algorithmOf(digest), encodedOf(digest).slice(0, 2))
  }

  /** One of the folders that hold blobs. */
  part(part: number): readonly [Algorithm, string] {
    const algorithm = part < leaves.length ? 'sha256' : 'sha512'
    return [algorithm, join(this.blobs, algorithm, leaves[part % leaves.length] ?? '')]
  }

  blob(digest: Digest): string {
    return join(this.blobDirectory(digest), encodedOf(digest))
  }

  /** Where bytes go that are not those of this digest any more. */
  quarantined(digest: Digest, now: number): string {
    return join(this.quarantine, `${digest.replace(':', '-')}.${now}`)
  }
}

/** The digest that a file's name says; names that say none are somebody else's. */
export function digestIn(directory: string, algorithm: Algorithm, name: string): Digest[] {
  if (!directory.endsWith(name.slice(0, 2))) return []
  try {
    return [parseDigest(`${algorithm}:${name}`)]
  } catch {
    return []
  }
}

/** Makes what was made, renamed or removed in these folders durable. */
export async function syncDirectories(directories: readonly string[]): Promise<void> {
  for (const directory of directories) {
    const handle = await open(directory, 'r')
    try {
      await handle.sync()
    } finally {
      await handle.close()
    }
  }
}
