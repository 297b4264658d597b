"""How far a teacher's advice can be followed at a token: what it says of the tokens that the student might write."""
import math

from torch import Tensor

from tasks.opd.objective.supports import StudentTokens, TeacherTokens, entropy_of, gathered, renormalised, student_top_k


def reliability(student: StudentTokens, teacher: TeacherTokens, k: int) -> Tensor:
    """P * (1 - H / ln k) over the student's k likeliest tokens C: [n], in [0, 1].

    P = sum_C p is the teacher's mass on them, H the entropy of p renormalised to them. It is near 1 where the teacher
    means one of the tokens that the student considers, so that its advice is within reach and decided; low where the
    prefix has led to what the teacher would not have written (its mass lies elsewhere), and where it does not prefer
    any of the student's tokens to the others. At k = 1 it is P.
    Source: ours, of the overlap of arXiv:2604.13016 and the teacher's entropy of arXiv:2604.02288; the candidates are
    the student's, as in arXiv:2605.07804.
    """
    ids = student_top_k(student, teacher, k=k)
    there = gathered(teacher.full, ids)
    decided = 1 - entropy_of(renormalised(there, "both")) / math.log(max(2, ids.shape[1]))
    return there.exp().sum(-1) * decided
