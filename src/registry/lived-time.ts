import type { Period } from '../../storage/tag-store.js'

/** Milliseconds after which a server that was not heard of counts as stopped. */
export const longestSilence = 24 * 3_600_000

/**
 * The moment since which a server has run for so long. Time for which none ran does not count, and neither does time
 * that a clock has jumped over: nobody could push or pull then. What was before the first record counts in full.
 * @param running newest first
 */
export function livedSince(now: number, length: number, running: readonly Period[]): number {
  const past = running.filter(({ beganAt }) => beganAt <= now)
  const [newest] = past
  if (newest === undefined) return now - length
  // The last note may be an hour old.
  const isRunning = now - newest.endedAt <= longestSilence
  let end = isRunning ? now : newest.endedAt
  let left = length
  for (const [at, { beganAt }] of past.entries()) {
    if (left <= end - beganAt) return end - left
    left -= end - beganAt
    end = past[at + 1]?.endedAt ?? beganAt
  }
  return end - left
}
