import type { IndexEntry, Platform } from '../oci/index-entries.js'

/** The variant that is meant where none is written, as containerd has it. */
const usualVariants: Readonly<Record<string, string>> = { amd64: 'v1', arm: 'v7', arm64: 'v8' }

/**
 * The entries of an index that somebody needs who wants these platforms: theirs, those that are about one of theirs
 * (attestations), and those of no platform.
 * @param wanted such as `linux/amd64` or `linux/arm/v7`; without a variant all variants are meant; empty for all
 */
export function entriesFor(entries: readonly IndexEntry[], wanted: readonly string[]): readonly IndexEntry[] {
  if (wanted.length === 0) return entries
  const isWanted = ({ platform }: IndexEntry) =>
    platform === undefined || wanted.some((text) => fits(platform, text))
  const digests = new Set(entries.map(({ digest }) => digest))
  const chosen = new Set(entries.filter(isWanted).map(({ digest }) => digest))
  return entries.filter((entry) => {
    const isAboutAnother = entry.about !== undefined && digests.has(entry.about) && !chosen.has(entry.about)
    return isWanted(entry) && !isAboutAnother
  })
}

function fits({ os, architecture, variant }: Platform, wanted: string): boolean {
  const [wantedOs, wantedArchitecture, wantedVariant] = wanted.split('/')
  if (os !== wantedOs || architecture !== wantedArchitecture) return false
  return wantedVariant === undefined || wantedVariant === (variant ?? usualVariants[architecture])
}
