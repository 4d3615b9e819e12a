import type { Child, ParsedManifest } from './manifest.js'

/** Children that are handled in one go. */
export const largestPiece = 250

/**
 * A parsed manifest on its way between threads. Tens of thousands of objects would take each of them a tenth of a
 * second to copy, on the event loop; text takes next to nothing.
 */
export interface PackedManifest extends Omit<ParsedManifest, 'annotations'> {
  /** All children; of a manifest with more than {@link largestPiece} of them none. */
  readonly children: readonly Child[]
  /** The children of such a manifest: JSON arrays of at most {@link largestPiece} each. */
  readonly packed: readonly string[]
  /** A JSON object of strings, where there is a subject whose list shows them. */
  readonly annotations: string | undefined
}

/** Packs a parsed manifest. */
export function packManifest(manifest: ParsedManifest): PackedManifest {
  const { children, annotations, subject } = manifest
  const isLarge = children.length > largestPiece
  return {
    ...manifest,
    children: isLarge ? [] : children,
    packed: isLarge ? piecesOf(children).map((piece) => JSON.stringify(piece)) : [],
    annotations: subject === undefined || annotations === undefined ? undefined : JSON.stringify(annotations),
  }
}

/** In the order of their digests: what is near in a piece is near in the index, and few of its pages change. */
function piecesOf(children: readonly Child[]): (readonly Child[])[] {
  const count = Math.ceil(children.length / largestPiece)
  const sorted = [...children].sort((one, other) => (one.digest < other.digest ? -1 : 1))
  return Array.from({ length: count }, (_, at) => sorted.slice(at * largestPiece, (at + 1) * largestPiece))
}

/** All children, some at a time; whoever works through them lets others have their turns in between. */
export function* childrenOf({
  children,
  packed,
}: Pick<PackedManifest, 'children' | 'packed'>): Generator<readonly Child[]> {
  if (children.length > 0) yield children
  for (const piece of packed) yield JSON.parse(piece) as readonly Child[] // our own text
}
