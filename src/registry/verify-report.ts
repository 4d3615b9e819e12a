import type { AffectedTag, NamingManifest } from '../../storage/integrity-store.js'
import type { Digest } from '../oci/digest.js'
import type { RepositoryName } from '../oci/reference.js'

/** Something that is not as it should be. */
export interface Finding {
  /**
   * `missing` and `altered`: these bytes are lost here, and nobody is served them; `unreadable`: the disk refused, which
   * says nothing of the bytes, and nothing was done.
   */
  readonly problem: 'missing' | 'altered' | 'unreadable'
  readonly what: 'blob' | 'manifest'
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** The repository of a manifest. */
  readonly repository?: RepositoryName
  /** What exactly was seen. */
  readonly how: string
  /** Tags whose images cannot be pulled whole any more; at most 100. */
  readonly tags: readonly AffectedTag[]
  /** Mirrors that fetch it again when somebody asks for it. */
  readonly mirrors: readonly string[]
  /** Whether it came from a mirror's upstream again, and is whole. */
  readonly isMended: boolean
  /** Manifests that name it, where no tag leads to any; at most 100. */
  readonly manifests: readonly NamingManifest[]
  /** Whether nothing needs it: it was taken out of all repositories, and goes with a collection. */
  readonly isUnneeded: boolean
}

/** What a verification has found. */
export interface VerificationReport {
  /** What was looked at, from the beginning of this verification on, interruptions or not. */
  blobs: number
  bytes: number
  manifests: number
  /** The same of this run alone. */
  bytesNow: number
  /** The first of them; `problems` counts all. */
  readonly findings: Finding[]
  problems: number
  /** Of the problems, those that are none any more: the bytes came from a mirror's upstream again. */
  mended: number
  /** Of the problems, damaged blobs that nothing needs. */
  unneeded: number
  /** Blobs that were damaged before and are right again. */
  healed: number
  /** Files that no row knows, the first of them by name. */
  orphans: number
  orphanBytes: number
  readonly orphanDigests: Digest[]
  /** What is wrong with the index, a sentence each. */
  indexFaults: readonly string[]
  isInterrupted: boolean
  milliseconds: number
}

/** A report of nothing. */
export function emptyVerification(): VerificationReport {
  return {
    blobs: 0,
    bytes: 0,
    manifests: 0,
    bytesNow: 0,
    findings: [],
    problems: 0,
    mended: 0,
    unneeded: 0,
    healed: 0,
    orphans: 0,
    orphanBytes: 0,
    orphanDigests: [],
    indexFaults: [],
    isInterrupted: false,
    milliseconds: 0,
  }
}

/** Problems that are still there at the end. */
export function problemsLeft({ problems, mended, unneeded, indexFaults }: VerificationReport): number {
  return problems - mended - unneeded + indexFaults.length
}
